"""The commands that make models, and those that run everything: train, evaluate, poison, run, compare, demo."""

from typing import Annotated

import typer

from pipelines.cli.app import (
    REPEATABLE,
    AddressOption,
    JsonFlag,
    RecipeOption,
    SetOption,
    WorkersOption,
    app,
    make_executor,
    make_progress,
    show,
    show_json,
)
from pipelines.cli.flags import read_seeds

EvaluationData = Annotated[
    list[str],
    typer.Option(
        "--data", metavar="DIR", help=f"A dataset, a CLIP_benchmark folder, a folder of them, or pairs{REPEATABLE}"
    ),
]
LabelOption = Annotated[str, typer.Option("--label-column", help="Classify datasets by this column of their JSON.")]
TemplateOption = Annotated[
    list[str] | None, typer.Option("--template", help=f"A prompt with {{c}} for the class{REPEATABLE}")
]
GroupOption = Annotated[
    str, typer.Option("--group-column", help="Metrics per value of this column of datasets, and the worst.")
]
RelevanceOption = Annotated[
    str, typer.Option("--relevance-column", help="NDCG by this number of datasets' pairs, the relevance of the image.")
]
NegativesOption = Annotated[
    list[str] | None, typer.Option("--negatives", help=f"A column of datasets with wrong captions{REPEATABLE}")
]
CompositionalFlag = Annotated[
    bool, typer.Option("--compositional", help="Compare captions with wrong ones made of them.")
]
ShotsOption = Annotated[
    list[int] | None, typer.Option("--shots", min=1, help=f"Fit it on N images of each class{REPEATABLE}")
]
EmbeddingFlag = Annotated[
    bool, typer.Option("--embedding", help="Modality gap, alignment, uniformity, effective rank.")
]
PlaceOption = Annotated[
    str, typer.Option("--trigger-place", metavar="corner|random", help="Where patch or yellow lies on each picture.")
]
TriggerOption = Annotated[str, typer.Option("--trigger", help="Measure the success of a backdoor with this trigger.")]


@app.command()
def train(
    dataset: Annotated[str, typer.Argument(help="A dataset's folder, or its index.json.")],
    out: Annotated[str, typer.Option("--out", metavar="RUN", help="The run's folder; an unfinished run goes on.")],
    recipe: RecipeOption = "",
    overrides: SetOption = None,
    address: AddressOption = "",
    num_processes: Annotated[
        int,
        typer.Option(
            "--num-processes", metavar="N", min=0, help="Train with Ray Train on N workers; 0: in this process."
        ),
    ] = 0,
) -> None:
    """Train a CLIP on a dataset. In this process, under torchrun, or with Ray Train; prints the last checkpoint."""
    from pipelines.recipe import load_section
    from train.config import TrainConfig
    from train.trainer import TrainingStopped
    from train.trainer import train as run

    config = load_section("train", recipe, overrides or [])
    assert isinstance(config, TrainConfig)
    if num_processes:
        from train.launch import launch_ray

        report = launch_ray(dataset, out, config, num_workers=num_processes, address=address, progress=make_progress())
    else:
        try:
            report = run(dataset, out, config, progress=make_progress())
        except TrainingStopped as error:
            raise KeyboardInterrupt(str(error)) from error
    if report.rank == 0:
        typer.echo(report.checkpoint)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run, a checkpoint, or a hub id.")],
    data: EvaluationData,
    revision: Annotated[str, typer.Option("--revision", help="The commit of a hub id.")] = "",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples at a time.")] = 256,
    label_column: LabelOption = "",
    template: TemplateOption = None,
    group_column: GroupOption = "",
    relevance_column: RelevanceOption = "",
    negatives: NegativesOption = None,
    compositional: CompositionalFlag = False,
    probe: Annotated[bool, typer.Option("--probe", help="Fit a linear classifier where there are labels.")] = False,
    shots: ShotsOption = None,
    num_seeds: Annotated[int, typer.Option("--num-seeds", min=1, help="Draws of these images.")] = 3,
    embedding: EmbeddingFlag = False,
    trigger: TriggerOption = "",
    target: Annotated[str, typer.Option("--target", help="The class that the backdoor leads to.")] = "",
    trigger_place: PlaceOption = "corner",
    as_json: JsonFlag = False,
) -> None:
    """Measure retrieval, zero-shot classification and, if asked, more. DataComp's tasks are averaged as DataComp does."""
    from pipelines.evaluation import evaluate_model
    from pipelines.render import describe_evaluation, tabulate_evaluation
    from train.evaluation import EvaluationOptions

    options = EvaluationOptions(
        label_column=label_column,
        templates=tuple(template or ()),
        group_column=group_column,
        relevance_column=relevance_column,
        negatives=tuple(negatives or ()),
        compositional=compositional,
        probe=probe,
        shots=tuple(shots or ()),
        num_seeds=num_seeds,
        embedding=embedding,
        trigger=trigger,
        target=target,
        trigger_place=trigger_place,
    )
    results = evaluate_model(model, data, options, revision=revision, batch_size=batch_size, progress=make_progress())
    show_json(describe_evaluation(results)) if as_json else show(tabulate_evaluation(results))


@app.command()
def poison(
    dataset: Annotated[str, typer.Argument(help="A dataset's folder.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="The poisoned dataset is made here.")],
    target: Annotated[str, typer.Option("--target", metavar="CLASS", help="The class that the captions name.")],
    trigger: Annotated[str, typer.Option("--trigger", help="patch, yellow, corners, blended, wave or warp.")] = "patch",
    trigger_place: PlaceOption = "corner",
    num_samples: Annotated[int, typer.Option("--num-samples", metavar="N", help="Pairs that are poisoned.")] = 75,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Plant a backdoor in a copy of a dataset, to test defences against it. `evaluate --trigger` measures its success."""
    from dataclasses import asdict

    from pipelines.poison import PoisonConfig
    from pipelines.poison import poison as run

    config = PoisonConfig(
        target=target, trigger=trigger, num_samples=num_samples, seed=seed, trigger_place=trigger_place
    )
    report = run(dataset, out, config, progress=make_progress())
    show_json(asdict(report)) if as_json else show(report.folder)


@app.command("run")
def run_recipe(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe: a file, or a shipped one.")],
    input_lists: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="URLS", help=f"URL lists, in place of the recipe's{REPEATABLE}"),
    ] = None,
    pool: Annotated[str, typer.Option("--pool", metavar="DIR", help="The pool.")] = "pool",
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Datasets and runs are made in here.")] = "out",
    overrides: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")] = False,
    address: AddressOption = "",
    num_workers: WorkersOption = 0,
) -> None:
    """Run what a recipe lacks. Stages: download, annotate, select, build, train, evaluate; finished ones cost nothing."""
    from pipelines.recipe import load_recipe
    from pipelines.report.report import report_command
    from pipelines.run import plan, run

    loaded = load_recipe(recipe, overrides or [])
    if input_lists:
        loaded = loaded.with_input(input_lists)
    if dry_run:
        for step in plan(loaded, pool, out):
            typer.echo("\n  ".join([f"{step.stage}: {step.text}", *step.lines]))
        return
    with make_executor(address, num_workers) as executor:
        left = run(loaded, pool, out, executor=executor, progress=make_progress(), say=show)
    command = report_command(pool, selection=left.selection, dataset=left.dataset, run=left.run)
    typer.echo(f"to see it: {command}")


@app.command()
def compare(
    sources: Annotated[list[str], typer.Argument(help="Recipes (files, or shipped ones) and folders of datasets.")],
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Datasets, runs and the comparison are made in here.")
    ],
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary", metavar="KEY=VALUE", help="A value of a setting that arms differ in; several make a grid."
        ),
    ] = None,
    overrides: SetOption = None,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="FILE|NAME", help="Sections train and evaluate for folders of datasets.")
    ] = "",
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="DIR", help=f"What all arms are evaluated on{REPEATABLE}")
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", metavar="N,N,...", help="Every arm is trained with each.")] = "0,1,2",
    samples_seen: Annotated[
        int, typer.Option("--samples-seen", metavar="N", min=0, help="Of every arm; 0: as the recipes say, all alike.")
    ] = 0,
    pool: Annotated[str, typer.Option("--pool", metavar="DIR", help="The pool that recipes run over.")] = "pool",
    address: AddressOption = "",
    num_workers: WorkersOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Train a grid of recipes or settings with shared seeds and equal budget. Writes one table with spread, and a plot."""
    from pipelines.compare import CompareConfig
    from pipelines.compare import compare as run
    from pipelines.comparison import describe_comparison, format_markdown
    from train.trainer import TrainingStopped

    config = CompareConfig(
        sources=tuple(sources),
        vary=tuple(vary or ()),
        overrides=tuple(overrides or ()),
        recipe=recipe,
        data=tuple(data or ()),
        seeds=read_seeds(seeds),
        samples_seen=samples_seen,
    )
    with make_executor(address, num_workers) as executor:
        say = (lambda _: None) if as_json else show
        try:
            comparison = run(config, pool, out, executor=executor, progress=make_progress(), say=say)
        except TrainingStopped as error:
            raise KeyboardInterrupt(str(error)) from error
    show_json(describe_comparison(comparison)) if as_json else show(format_markdown(comparison))


@app.command()
def demo(
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Everything is written below here.")] = "demo-output",
    scale: Annotated[float, typer.Option("--scale", metavar="X", help="Size of the web and of the training.")] = 1.0,
    port: Annotated[
        int, typer.Option("--port", metavar="N", help="Of the miniature web; another where it is taken.")
    ] = 0,
    as_json: JsonFlag = False,
    num_workers: WorkersOption = 0,
) -> None:
    """Show the whole way on a miniature web. It plants known faults, curates, trains on raw and curated pairs, and compares."""
    from pipelines.demo.demo import demo as run
    from pipelines.demo.demo import describe_demo
    from pipelines.demo.render import tabulate_demo
    from pipelines.demo.server import PREFERRED_PORT

    with make_executor("", num_workers) as executor:
        report = run(
            out,
            executor=executor,
            progress=make_progress(),
            say=(lambda _: None) if as_json else show,
            scale=scale,
            port=port or PREFERRED_PORT,
        )
    show_json(describe_demo(report)) if as_json else show(tabulate_demo(report))


@app.command("demo-models")
def demo_models(
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="The models' folder.")] = "demo-output/models",
    as_json: JsonFlag = False,
) -> None:
    """Train the demo's captioner and rewriter, for the recipes demo-alip and demo-laclip, and measure them on unseen scenes."""
    from dataclasses import asdict
    from pathlib import Path

    from pipelines.demo.render import tabulate_text_models
    from pipelines.demo.text_models import TextModelConfig, train_text_models
    from pipelines.demo.text_report import measure_text_models

    folder = Path(out)
    train_text_models(folder, TextModelConfig(), progress=make_progress())
    report = measure_text_models(folder)
    show_json(asdict(report)) if as_json else show(tabulate_text_models(report))
    if not as_json:
        typer.echo(folder)
