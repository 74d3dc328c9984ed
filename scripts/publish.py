"""Publish a trained model on the Hub, or look at the page it will have:

    python scripts/publish.py runs/bert user/bert --dry_run     # the files, their sizes, the card; nothing is sent
    python scripts/publish.py runs/bert user/bert --tag v1      # private; --public opens it once all is checked
    python scripts/publish.py --preview runs/bert               # runs/bert/preview.html, as the Hub would show it

The token is that of `hf auth login`, or HF_TOKEN. All files go in one commit; what has not changed is not sent again.
Afterwards the published revision is downloaded into an empty cache and loaded in a clean process, and has to compute
what the model computed here.
"""

import argparse
import os
import re
import sys
import traceback
from pathlib import Path


if not sys.stderr.isatty():
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from huggingface_hub.utils import get_token

from triune.training.arguments import parse_words, script_parser
from triune.training.console import Console, quantity, silence
from triune.training.hub import content, golden, preview, publish, scan


SWITCHES = {
    "dry_run": "print the files, their sizes and the card; send nothing",
    "public": "open the repository to everyone, after all is checked; without it a new one is private",
    "force": "replace what others have put there",
    "pull_card": "take over what was written on the published card",
    "no_examples": "show nothing that stems from the held-out data: no examples, no pictures of it",
    "preview": "write the page to RUN/preview.html",
}
VALUES = {
    "tag": "a name for this version, which the card then pins",
    "branch": "where to (main)",
    "message": "of the commit",
    "license": "of the weights, as the Hub names it (apache-2.0)",
    "language": "of the text, as a code: en, de, ...",
}
LISTS = {
    "seeds": "other runs of the same recipe: the card gives mean and spread",
    "not_secret": "files in which what looks like a secret is none",
}


def parser() -> argparse.ArgumentParser:
    made = script_parser(__doc__, "publish.py RUN user/name [--dry_run] [--tag TAG] [--public] [--flag value]")
    made.add_argument("run", metavar="RUN", help="a run folder or a model folder")
    made.add_argument("name", metavar="user/name", nargs="?", help="the repository")
    for name, says in SWITCHES.items():
        made.add_argument(f"--{name}", action="store_true", help=says)
    for name, says in VALUES.items():
        made.add_argument(f"--{name}", help=says)
    for name, says in LISTS.items():
        made.add_argument(f"--{name}", nargs="+", default=[], metavar=name.upper(), help=says)
    made.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for a silent Hub (60)")
    return made


def parse(argv: list[str]) -> argparse.Namespace:
    given = parse_words(parser(), argv, (*SWITCHES, *VALUES, *LISTS, "timeout"))
    if given.name is None and not given.preview:
        raise ValueError("where to? The repository comes after the run: publish.py RUN user/name")
    return given


def options_of(given: argparse.Namespace) -> publish.Options:
    return publish.Options(
        branch=given.branch or publish.MAIN,
        examples=not given.no_examples,
        **{name: getattr(given, name) for name in (*LISTS, "tag", "public", "force", "pull_card", "message")},
        **{name: getattr(given, name) for name in ("license", "language")},
    )


# ---------------------------------------------------------------------------------------------------------------------


def show_files(console: Console, files: dict[str, Path | bytes], left_behind: list[str]) -> None:
    for path, file in sorted(files.items()):
        console.show(f"  {quantity(publish.size(file), 'B'):>9}  {path}")
    console.note(f"{publish.count(files)}, {quantity(sum(map(publish.size, files.values())), 'B')}")
    if left_behind:
        console.note(f"not sent: {', '.join(left_behind)}")


def dry_run(console: Console, release: publish.Release, options: publish.Options) -> None:
    """Everything that can be said without the Hub."""
    card = publish.written_card(release, options, options.tag, publish.local_card(release))
    files = {**release.files, content.CARD: card}
    publish.refuse_secrets(files, options, get_token())
    show_files(console, files, release.left_behind)
    console.heading(content.CARD)
    print(card.decode(), flush=True)
    console.note("dry run: nothing was sent")


def show_page(console: Console, release: publish.Release, options: publish.Options) -> None:
    card = publish.written_card(release, options, options.tag, publish.local_card(release)).decode()
    target = release.record.parent / "preview.html"
    preview.write(card, release.folder, release.name, target, release.files)
    for name in preview.missing(card, release.folder, release.name, release.files):
        console.warning(f"the card shows {name}, and there is no such file")
    console.note(f"the page: {target}")


def show_published(console: Console, release: publish.Release, done: publish.Published) -> None:
    sent = ", ".join(done.sent) if len(done.sent) <= 3 else publish.count(done.sent)
    rows = {
        "repository": f"{release.name} ({'public' if done.public else 'private'})",
        "commit": f"{done.commit}{f', tag {done.tag}' if done.tag else ''}",
        "sent": f"{sent}; {done.kept} unchanged" if done.sent else "nothing: all is there already",
        "deleted": ", ".join(done.deleted),
        "checked": "downloaded into an empty cache: the same bytes, "
        f"answers that differ by {done.checked.difference:g}",
    }
    console.end({name: text for name, text in rows.items() if text}, title="published")
    print(golden.usage(release.name, done.tag or done.commit, release.facts), flush=True)


def run(given: argparse.Namespace) -> None:
    console, options = Console(), options_of(given)
    name = given.name or f"user/{re.sub(r'[^A-Za-z0-9]+', '-', Path(given.run).resolve().name).strip('-') or 'model'}"
    release = publish.prepare(Path(given.run), name, options)
    if given.preview:
        show_page(console, release, options)
    elif given.dry_run:
        dry_run(console, release, options)
    else:
        done = publish.publish(publish.connect(given.timeout), release, options, console.note)
        show_published(console, release, done)


def main(argv: list[str]) -> int:
    silence()
    try:
        run(parse(argv))
    except (ValueError, OSError) as error:
        sys.exit(scan.redact(f"error: {error}", get_token()))
    except Exception:  # a mistake of ours: told whole, but for the token
        sys.exit(scan.redact(traceback.format_exc(), get_token()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
