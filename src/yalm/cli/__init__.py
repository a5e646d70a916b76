"""The command line: one verb per job, no logic of its own.

Heavy imports stand inside the commands, so that `yalm --help` answers at once. An error that a person can mend is
printed as its one line, with exit code 2.
"""

import sys

import typer

from yalm.cli import convert, corpus, demo, generate, model, plan, profile, report, tokenizer, tokens, train
from yalm.errors import YalmError

app = typer.Typer(
    name="yalm",
    help="The open, end-to-end YaLM system: corpus, training and generation of Russian-English language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(model.app, name="model")
app.add_typer(corpus.app, name="corpus")
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(tokens.app, name="tokens")
app.command()(train.train)
app.command()(profile.profile)
app.command()(report.report)
app.command()(plan.plan)
app.command()(generate.generate)
app.command()(demo.demo)
app.command()(convert.convert)
app.command()(convert.verify)


def main() -> None:
    """Entry point of the `yalm` command."""
    try:
        app()
    except YalmError as error:
        print(f"yalm: {error}", file=sys.stderr)
        sys.exit(2)
