"""The commands about recipes: recipes, recipe new, recipe show, recipe schema."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import REPEATABLE, JsonFlag, SetOption, app, show, show_json

recipe_app = typer.Typer(no_args_is_help=True, help="Write a recipe, see one whole, and have an editor check it.")
app.add_typer(recipe_app, name="recipe")


@app.command()
def recipes(as_json: JsonFlag = False) -> None:
    """List the recipes that come with Winnow. Shows what each does, its paper, what it costs and what came out here."""
    from pipelines.recipe import shipped_recipes
    from pipelines.recipe_header import describe_recipes, read_header, tabulate_recipes

    headers = {name: read_header(path) for name, path in shipped_recipes().items()}
    show_json(describe_recipes(headers)) if as_json else show(tabulate_recipes(headers))


@recipe_app.command()
def new(
    path: Annotated[str, typer.Argument(help="The file to write.")] = "recipe.yaml",
    extends: Annotated[
        list[str] | None,
        typer.Option("--extends", metavar="NAME", help=f"What to lay it on, shipped or a path{REPEATABLE}"),
    ] = None,
) -> None:
    """Write a commented recipe to begin with. Beside it goes the schema by which an editor completes and checks it."""
    from pipelines.recipe_starter import write_starter

    written = write_starter(Path(path), extends or [])
    typer.echo("\n".join(map(str, written)))


@recipe_app.command("show")
def show_recipe(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe: a file, or a shipped one.")],
    overrides: SetOption = None,
) -> None:
    """Print a recipe with everything written out: what it extends, every default."""
    from pipelines.recipe import load_recipe, shipped_recipes
    from pipelines.recipe_header import opening_comment

    loaded = load_recipe(recipe, overrides or [])
    typer.echo(opening_comment(shipped_recipes().get(recipe, Path(recipe))) + loaded.to_yaml(), nl=False)


@recipe_app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors. `recipe new` writes it beside the recipe."""
    from pipelines.recipe_schema import recipe_schema

    show_json(recipe_schema())
