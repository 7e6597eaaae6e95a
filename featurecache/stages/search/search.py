"""Search: the augmentation policy that suits a dataset, found on cached vectors."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Unpack

from featurecache.errors import located
from featurecache.features.backbones import check_layer
from featurecache.features.store import Cache
from featurecache.heads.gram_memory import check_memory
from featurecache.heads.mixture_weights import best_of_each
from featurecache.images.datasets import open_dataset
from featurecache.images.operations import atomic_policies, mixture, pair, written_view
from featurecache.images.policies import Policy, read_policy
from featurecache.json_files import MAX_RUN_JSON, read_model
from featurecache.keys import canonical, digest
from featurecache.lookup.labelled_rows import rows_digest
from featurecache.runs.record import claimed_run, make_folder
from featurecache.stages.heads.shared_options import SharedOptions, resolve_options
from featurecache.stages.search.halving import candidate_mixtures, halve
from featurecache.stages.search.scoring import OperationScore, Scored, score_policies
from featurecache.stages.search.search_config import NONE, RIVALS, read_config
from featurecache.stages.search.search_images import Vectors, choose_images
from featurecache.stages.search.search_report import Search, report, verdict
from featurecache.stages.search.search_trainings import Trainings
from featurecache.storage import durable
from featurecache.training.settings import check_device

_MAX_RATIO = 4  # of the epochs on the sample to those of the verdict
_MAX_PAIRED = 4  # policies of depth 1 of which depth 2 makes pairs


def search(
    config: str | Path,
    *,
    runs: str | Path = "runs",
    device: str = "auto",
    engine: str = "auto",
    workers: int | None = None,
    **options: Unpack[SharedOptions],
) -> Search:
    """Search for the mixture of operations that helps a head most (docs/search.md).

    A sample of the training images is embedded through every operation, once. The operations are
    scored without training, mixtures of them are weighed by gradients through a ridge head and
    chosen by successive halving with real trainings, all on the validation images. The found policy
    is then compared with `none`, RandAugment, TrivialAugment and the best shipped policy on a split
    that the search never touched, at equal optimizer steps.

    A folder in `runs` has the policy and every result. A stopped search resumes and finds the same
    policy. Raises BadInput before the first step.
    """
    data, cache, progress = resolve_options(options, "search")
    check_device(device)
    path = Path(config)
    wanted = read_config(path)
    by_operation = wanted.policies(path)
    kinds = {p.name: name for name, policies in by_operation.items() for p in policies}
    atomic = {p.name: p for policies in by_operation.values() for p in policies}
    rivals = {
        name: atomic_policies(name, None, 1, f"{path}: compare")[0]
        for name in dict.fromkeys([*wanted.compare, *RIVALS])
    }
    check_memory([wanted], 0)  # of random features; the width of the vectors is not known yet
    dataset = open_dataset(data)
    images = choose_images(wanted, dataset, progress)
    vectors = Vectors(
        config=wanted, dataset=dataset, cache=Cache(cache), engine=engine, workers=workers,
        progress=progress,
    )  # fmt: skip
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def lap(stage: str) -> None:
        before = sum(seconds.values())
        spent = seconds.get(stage, 0.0) + time.perf_counter() - began - before
        seconds[stage] = round(spent, 3)

    for choice in wanted.backbone:
        if ":" not in choice.name:  # what timm does not know is built and checked once, to embed
            with located(path):
                check_layer(choice.name, choice.layer, choice.pooling)

    # 1. Embed: the sample through every atomic policy, the validation images as they are.
    clean = vectors.embed([*images.sample, *images.validation], [NONE])[NONE]
    identity = digest(
        {
            "config": wanted.as_json(),
            "policies": {policy.name: policy.key() for policy in (atomic | rivals).values()},
            "rows": [rows_digest(rows) for rows in (images.sample, images.validation)],
            "classes": list(dataset.classes),
            "spaces": [space.name for space in clean],
        }
    )
    run = Path(runs) / f"search-{identity[:8]}"
    make_folder(run / "policies")
    make_folder(run / "trained")
    trainings = Trainings(
        run=run, identity=identity, config=wanted, vectors=vectors, device=device, progress=progress
    )
    with claimed_run(run, lambda why: progress(0, 0, f"search ({why})"), "search"):
        spaces = {NONE: clean} | vectors.embed_policies(images.sample, atomic | rivals, run)
        images = images.decoded(spaces, "sample")
        names = [space.name for group in spaces.values() for space in group]
        if not vectors.cache.note_run(run, names):
            images.notes.append(f"{cache} can't be written: `gc` cannot know that {run} uses it")
        lap("embed")

        # 2. Score the policies without training, and weigh them; once more with pairs of the best.
        def scores(depth: int) -> list[OperationScore]:
            stored = run / f"scores-{depth}.json"
            if not stored.is_file():
                part = {name: spaces[name] for name in (NONE, *atomic)}
                rows = score_policies(part, images, dataset, wanted.share, progress)
                durable.replace(stored, Scored(scores=rows).model_dump_json().encode() + b"\n")
            return read_model(stored, Scored, MAX_RUN_JSON).scores

        operations = scores(1)
        lap("score")
        if wanted.depth == 2:
            pairs = _pairs(operations, atomic, kinds)
            spaces |= vectors.embed_policies(images.sample, pairs, run)
            images = images.decoded(spaces, "sample")
            atomic |= pairs
            lap("embed")
            operations = scores(2)
            lap("score")

        # 3. Choose: successive halving of mixtures, with real trainings on the sample, which take
        # as many steps as those of the verdict unless these are far longer.
        ratio = 1.0 if wanted.is_solved else len(images.training) / len(images.sample)
        chosen = halve(
            candidate_mixtures(operations, kinds, wanted.compare),
            lambda weights, epochs, seed: trainings.right(images, spaces, weights, epochs, seed),
            round(wanted.epochs * min(max(ratio, 1), _MAX_RATIO)),
            trainings.seeds,
        )
        alone = [next(iter(row["weights"])) for row in chosen if len(row["weights"]) == 1]
        best_shipped = next(name for name in alone if name in wanted.compare)
        lap("choose")

        # The policy file, and its trainings against others on images that nothing has touched.
        weights = chosen[0]["weights"]
        tree = mixture([((atomic | rivals).get(name), weight) for name, weight in weights.items()])
        description = f"Found by {config}: "
        description += ", ".join(f"{weight:.0%} {name}" for name, weight in weights.items())
        name = f"found-{digest(tree)[:8]}"  # its content, since trainings are kept by name
        file = Path(written_view(Policy(name, tree, description), run)[:-2])
        policy = read_policy(file)
        shipped = wanted.compare if wanted.judge.policies else [best_shipped]
        others = {name: rivals[name] for name in dict.fromkeys([*shipped, *RIVALS])}
        compared = trainings.judge(images, policy, others)
        lap("verdict")
        gap, clean_gap = (row["searched"] - row["untouched"] for row in compared[:2])
        parts = ("sample", "training", "validation", "judged")
        result = Search(
            run=str(run),
            policy=str(file),
            verdict=verdict(compared, len(images.judged), wanted.judge.split),
            weights=weights,
            compared=compared,
            optimism={"top1": gap, "gain": gap - clean_gap},
            operations=operations,
            candidates=chosen,
            images={name: len(getattr(images, name)) for name in parts},
            seconds=seconds,
            notes=images.notes,
        )
        durable.replace(run / "search.json", canonical(asdict(result)) + b"\n")
        durable.replace(run / "report.txt", report(result).encode())
    return result


def _pairs(
    scores: Sequence[OperationScore], atomic: Mapping[str, Policy], kinds: Mapping[str, str]
) -> dict[str, Policy]:
    """The best policies of different operations, two in sequence: by weight, then by gain."""
    names = [row["operation"] for row in scores]
    ranking = sorted(
        range(1, len(scores)), key=lambda n: (-scores[n]["weight"], -scores[n]["gain"])
    )
    best = best_of_each([kinds.get(name, name) for name in names], ranking, _MAX_PAIRED)
    made = [pair(atomic[names[a]], atomic[names[b]]) for a, b in combinations(best, 2)]
    return {policy.name: policy for policy in made}
