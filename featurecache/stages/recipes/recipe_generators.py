"""Checks of a recipe's steps that fit generators or generate images, and of views of these, before
the first step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from featurecache import yaml_files
from featurecache.errors import BadInput
from featurecache.features.store import Cache
from featurecache.generator_files import is_generator
from featurecache.generators.configs import GeneratorConfig, read_config
from featurecache.heads.schedules import Schedule
from featurecache.images.datasets import Dataset, open_dataset
from featurecache.images.view_names import ViewName
from featurecache.images.views import GENERATED
from featurecache.runs.generated_images import check_sampler, find_sampler
from featurecache.runs.generated_vectors import find_generated_view, is_generated
from featurecache.runs.generator_items import fold_folders
from featurecache.runs.image_pools import find_generated_images
from featurecache.runs.record import has_record
from featurecache.stages.generators.fit_generator import fitted_classes
from featurecache.stages.generators.generate import check_folder
from featurecache.stages.recipes.recipe_steps import Augment, Featurize, FitGenerator, Generate


@dataclass(frozen=True, kw_only=True)
class PlannedGenerators:
    """What earlier steps of a recipe are going to make, by absolute folder: `generators`, one or
    one per fold, with their configurations, and `datasets` with the folders of their generators.
    The name of a run that is there already is looked up in `runs`."""

    runs: str | Path
    generators: dict[Path, GeneratorConfig] = field(default_factory=dict)
    datasets: dict[Path, Path] = field(default_factory=dict)
    _outs: set[Path] = field(default_factory=set)

    def add(self, step: FitGenerator | Generate, dataset: Dataset, where: str) -> None:
        """Raise BadInput for a folder that an earlier step writes or that holds something else, for
        an unknown class or style, and for a generator that does not make images of classes."""
        out = Path(step.out).absolute()
        if out in self._outs:
            raise BadInput(f"{where}: out: {step.out} is written by an earlier step; name another")
        self._outs.add(out)
        if isinstance(step, FitGenerator):
            path = Path(step.config)
            config = read_config(path)
            fitted_classes(config, dataset, path)
            try:
                has_record(step.out)
            except BadInput as error:
                raise BadInput(f"{where}: {error}") from error
            folds = config.validation.folds if config.validation else 0
            self.generators.update(dict.fromkeys(fold_folders(out, folds), config))
            return
        generator = Path(step.generator).absolute()
        planned = self.generators.get(generator)
        try:
            check_folder(Path(step.out))
            if generator / "fold_1" in self.generators:
                fold = Path(step.generator) / "fold_1"
                raise BadInput(f"{step.generator}: has a generator per fold; name one, as {fold}")
            if planned is None or is_generator(generator):
                find_sampler(step.generator, self.runs)
            else:
                classes = planned.classes or list(dataset.classes)
                check_sampler(step.generator, planned.kind, planned.generator, classes)
        except BadInput as error:
            raise BadInput(f"{where}: {error}") from error
        self.datasets[out] = generator

    def source(self, step: Augment | Featurize) -> Path | None:
        """The folder of the other dataset that a step names, if it does. Raises BadInput if it is
        neither there nor one of these."""
        if step.data is None:
            return None
        folder = Path(step.data).absolute()
        if folder not in self.datasets:
            open_dataset(step.data)
        return folder

    def has_policy(self, view: str) -> bool:
        """Whether a view is of a policy file that names one of these generators, which is not there
        yet."""
        parts = ViewName.parse(view)
        if not self.generators or not parts.is_file or not Path(parts.policy).is_file():
            return False
        content = yaml_files.read_mapping(Path(parts.policy))
        folders = {Path(name).absolute() for name in yaml_files.names_in(content)}
        return any(not is_generator(folder) for folder in folders & self.generators.keys())

    def datasets_of(self, schedule: Schedule, cache: Cache, where: str) -> Iterator[Path]:
        """Those of these datasets that the schedule names as views. Raises BadInput for a view of a
        generator or dataset that neither exists nor is made by an earlier step, and for one whose
        generator will see images that the schedule is validated on."""
        for name in filter(is_generated, schedule.views()):
            text = name.removeprefix(GENERATED)
            named = {Path(v.policy).absolute() for v in (ViewName(text), ViewName.parse(text))}
            if not named & self._outs:
                if find_generated_images(name, 0, cache) is None:
                    find_generated_view(name, 0, self.runs)
                continue
            made = named & self.datasets.keys()
            sources = {self.datasets[folder] for folder in made} or named
            configs = [self.generators[source] for source in sources & self.generators.keys()]
            if schedule.validation.split is None and not all(c.validation for c in configs):
                raise BadInput(
                    f"{where}: view {name}: its generator is fitted on all training images, and "
                    "this training is validated on some of them; fit one generator per fold "
                    "(validation: {folds: 5} in its configuration), or validate on a split"
                )
            yield from made
