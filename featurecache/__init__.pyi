"""The public functions with their types, for editors and type checkers. At run time
`__init__.py` imports each one when it is first used."""

from featurecache.adapters.featurizer import Featurizer as Featurizer
from featurecache.adapters.head_classifier import HeadClassifier as HeadClassifier
from featurecache.adapters.vector_dataset import VectorDataset as VectorDataset
from featurecache.images.datasets import open_dataset as open_dataset
from featurecache.stages.cache.augment import augment as augment
from featurecache.stages.cache.diff import diff as diff
from featurecache.stages.cache.export import export as export
from featurecache.stages.cache.export import vectors as vectors
from featurecache.stages.cache.featurize import featurize as featurize
from featurecache.stages.cache.gc import gc as gc
from featurecache.stages.cache.index import index as index
from featurecache.stages.cache.ls import ls as ls
from featurecache.stages.cache.plan import plan as plan
from featurecache.stages.cache.retry import retry as retry
from featurecache.stages.cache.verify import verify as verify
from featurecache.stages.cache.why import why as why
from featurecache.stages.generators.fit_generator import fit_generator as fit_generator
from featurecache.stages.generators.generate import generate as generate
from featurecache.stages.heads.baselines import baselines as baselines
from featurecache.stages.heads.ensemble import ensemble as ensemble
from featurecache.stages.heads.evaluate import evaluate as evaluate
from featurecache.stages.heads.predict import load_head as load_head
from featurecache.stages.heads.predict import predict as predict
from featurecache.stages.heads.submit import submit as submit
from featurecache.stages.heads.train_head import train_head as train_head
from featurecache.stages.heads.worth import worth as worth
from featurecache.stages.looking.backbones import backbones as backbones
from featurecache.stages.looking.doctor import doctor as doctor
from featurecache.stages.looking.inspect import inspect as inspect
from featurecache.stages.looking.policies import policies as policies
from featurecache.stages.looking.policies import preview as preview
from featurecache.stages.looking.report import report as report
from featurecache.stages.looking.runs import list_runs as list_runs
from featurecache.stages.networks.train_network import train_network as train_network
from featurecache.stages.recipes.quickstart import quickstart as quickstart
from featurecache.stages.recipes.run import run as run
from featurecache.stages.search.search import search as search
from featurecache.stages.studies.drift import study_drift as study_drift
from featurecache.stages.studies.filters import study_filters as study_filters
from featurecache.stages.studies.neighbours import study_neighbours as study_neighbours
from featurecache.stages.studies.pca import study_pca as study_pca
from featurecache.stages.studies.realism import study_realism as study_realism
from featurecache.stages.studies.saliency import study_saliency as study_saliency
from featurecache.stages.studies.tsne import study_tsne as study_tsne

__version__: str
