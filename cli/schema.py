"""`llmagentos schema`: what the registry holds, and whether a change goes with it."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llmagentos.cli.output import Output, OutputOption

if TYPE_CHECKING:
    from collections.abc import Generator

    from llmagentos.streams.registry import Registry

__all__ = ["register"]

_FILES = typer.Argument(
    None, metavar="[FILE.avsc]...", help="None: the schemas that this version of llmagentos brings.", show_default=False
)
_SUBJECT = typer.Option(None, "--subject", "-s", help="Of one FILE; its record's full name if not given.")


def register(app: typer.Typer) -> None:
    """Add the group `schema`."""
    group = typer.Typer(no_args_is_help=True)

    @group.command("list", epilog="\b\nExamples:\n  llmagentos schema list\n  llmagentos schema list --output json")
    def list_(output: Output = OutputOption) -> None:  # pyright: ignore[reportUnusedFunction]
        """Every subject: its newest version, and that version's id."""
        from llmagentos.cli.output import print_rows

        with _registry() as registry:
            rows = [
                {
                    "subject": latest.subject,
                    "version": latest.version,
                    "id": latest.id,
                    "fields": _fields(latest.schema),
                }
                for latest in map(registry.latest, registry.subjects())
            ]
        columns = ("subject", "version", "id", "fields")
        print_rows(rows, columns, output=output, empty="the registry is empty; `llmagentos schema register` fills it")

    @group.command(
        epilog="\b\nExamples:\n  llmagentos schema show llmagentos.Message\n"
        "  llmagentos schema show llmagentos.Message --version 1 > message.avsc\n"
        "  llmagentos schema show --id 3 --output json"
    )
    def show(  # pyright: ignore[reportUnusedFunction]
        subject: str | None = typer.Argument(None, help="As `schema list` names it.", show_default=False),
        version: int | None = typer.Option(None, "--version", "-v", help="Default: the newest."),
        schema_id: int | None = typer.Option(None, "--id", help="By id, in place of a subject."),
        output: Output = OutputOption,
    ) -> None:
        """One schema: as Avro, or with subject, version and id as JSON."""
        from llmagentos.cli.output import print_json
        from llmagentos.streams.errors import InputError, UnknownSchema

        if (subject is None) == (schema_id is None):
            raise typer.BadParameter("give a SUBJECT or --id, one of them")
        with _registry() as registry:
            if schema_id is not None:
                if version is not None:
                    raise InputError("--version goes with a SUBJECT, not with --id", fix="leave one of them out")
                schema = registry.schema(schema_id)
                print_json({"id": schema_id, "schema": schema} if output is Output.json else schema)
                return
            assert subject is not None
            found = registry.versions(subject)
        chosen = next((each for each in found if each.version == (version or found[-1].version)), None)
        if chosen is None:
            there = ", ".join(str(each.version) for each in found)
            raise UnknownSchema(f"subject {subject} has no version {version}", fix=f"it has {there}")
        whole = {"subject": subject, "version": chosen.version, "id": chosen.id, "schema": chosen.schema}
        print_json(whole if output is Output.json else chosen.schema)

    @group.command(
        epilog="\b\nExamples:\n  llmagentos schema check\n  llmagentos schema check order.avsc\n"
        "  llmagentos schema check order.avsc --subject shop.Order"
    )
    def check(  # pyright: ignore[reportUnusedFunction]
        files: list[Path] = _FILES, subject: str | None = _SUBJECT, output: Output = OutputOption
    ) -> None:
        """Say whether schemas could be registered; register nothing. Exit status 1 where one could not."""
        from llmagentos.streams.errors import IncompatibleSchema

        def one(registry: Registry, subject: str, schema: dict[str, Any]) -> dict[str, Any]:
            try:
                registry.check(subject, schema)
            except IncompatibleSchema as error:
                return {"subject": subject, "compatible": False, "reason": error.what, "fix": error.fix}
            return {"subject": subject, "compatible": True, "reason": "", "fix": ""}

        _each(files, subject, one, ("subject", "compatible", "reason"), output)

    @group.command(
        "register",
        epilog="\b\nExamples:\n  llmagentos schema register\n"
        "  llmagentos schema register order.avsc --subject shop.Order",
    )
    def register_(  # pyright: ignore[reportUnusedFunction]
        files: list[Path] = _FILES, subject: str | None = _SUBJECT, output: Output = OutputOption
    ) -> None:
        """Register schemas, each after the check; one that is there keeps its version. Exit status 1 where one is
        refused; the others are registered."""
        from llmagentos.streams.errors import IncompatibleSchema

        def one(registry: Registry, subject: str, schema: dict[str, Any]) -> dict[str, Any]:
            try:
                schema_id = registry.register(subject, schema)
            except IncompatibleSchema as error:
                return {"subject": subject, "compatible": False, "id": None, "reason": error.what, "fix": error.fix}
            return {"subject": subject, "compatible": True, "id": schema_id, "reason": "", "fix": ""}

        _each(files, subject, one, ("subject", "id", "compatible", "reason"), output)

    app.add_typer(group, name="schema", help="The schema registry: list, show, check, register.")


def _each(files: list[Path] | None, subject: str | None, one: Any, columns: tuple[str, ...], output: Output) -> None:
    from llmagentos.cli.output import errors, print_rows
    from llmagentos.streams.registry import full_name

    if subject is not None and len(files or ()) != 1:
        raise typer.BadParameter("--subject goes with exactly one FILE")
    schemas = [_read(path) for path in files] if files else _own()
    with _registry() as registry:
        rows = [one(registry, subject or full_name(schema), schema) for schema in schemas]
    print_rows(rows, columns, output=output)
    if output is Output.pretty:
        for fix in dict.fromkeys(row["fix"] for row in rows if row["fix"]):
            errors.print("[bold]fix:[/]", fix, markup=True)
    if not all(row["compatible"] for row in rows):
        raise typer.Exit(1)


@contextmanager
def _registry() -> Generator[Registry]:
    from llmagentos.streams.registry import open_registry
    from llmagentos.streams.settings import Settings

    registry = open_registry(Settings.load())
    try:
        yield registry
    finally:
        registry.close()


def _own() -> list[dict[str, Any]]:
    from llmagentos import schemas

    return [schemas.load(name) for name in schemas.NAMES]


def _read(path: Path) -> dict[str, Any]:
    """The record schema in a file.

    Raises:
        InputError: the file can't be read, is not JSON, or holds no Avro record.
    """
    import json

    import fastavro
    from fastavro.schema import SchemaParseException

    from llmagentos.streams.errors import InputError

    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise InputError(f"{path} holds no record", fix='its schema must be {"type": "record", "name": ..., ...}')
    try:
        fastavro.parse_schema(json.loads(json.dumps(schema)))  # a copy, as it marks what it has parsed
    except (SchemaParseException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no Avro schema: {type(error).__name__}: {error}") from error
    return schema


def _fields(schema: dict[str, Any]) -> int:
    return len(schema.get("fields", ()))
