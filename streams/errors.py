"""Every exception that the project raises on purpose.

LLMAgentOSError                 anything below; carries what to do (`fix`) and what was kept (`kept`)
+-- SettingsError               a setting has a wrong name, type or value
+-- InputError                  a line, an argument or an expression that a person gave is wrong
+-- NodeError                   the local Kafka or Redis can't be started, reached or stopped
+-- BrokerError                 the Kafka cluster is out of reach or refuses
|   +-- TopicError              a topic is missing, or has other partitions than it must
|   +-- AccessError             authentication failed, or an ACL denies
|   +-- OffsetLost              records were deleted before the group handled them
|   +-- NotOwner                another worker owns the partition now; what this one does counts for nothing
+-- SchemaError                 the registry is out of reach, or knows no such schema
|   +-- IncompatibleSchema      a new version breaks readers of the old one
|   +-- UnknownSchema           the registry was reached, and has no such id or subject
+-- RecordError                 one record can't be decoded or is invalid; names its place
|   +-- RecordTooLarge          one record is over the limit of its topic
+-- DeliveryError               a record was not acknowledged by Kafka
+-- AgentError                  an agent's definition or behaviour is wrong
|   +-- UnknownAgent            no deployment serves an agent of that name
|   +-- AnswerError             the asked agent answered with an error
|   +-- AnswerTimeout           no answer came before the question's deadline
|   +-- StepError               a step can't be run, or its outcome can't be used
|   |   +-- ResultError         a result can't be recorded, or be read again
|   |   +-- StepFailed          a step ended by an error that it records
|   |   +-- StepUnknown         it was under way when its worker died, and may not be run twice
|   |   +-- ChangedCode         a rerun took another way than what is recorded
|   +-- ToolError               a tool can't be run where it must, or its server does not answer
|   +-- DataRefused             a request for files or tables is wrong, or not permitted
|   +-- StateError              what is to be remembered of a conversation can't be kept
|   |   +-- ChangedState        what is remembered can't be read by the code as it is
|   +-- ModelError              a model gave no answer that can be used
|   |   +-- ModelFailure        it did not answer: its endpoint is down, slow or overloaded, or refuses
|   |   +-- ContextTooLong      the question has more tokens than the model takes
|   |   +-- BadAnswer           the answer is not of the form that was asked for
|   |   +-- BudgetSpent         a bound on turns, tokens or dollars is reached
|   +-- InjectedFault           a fault that was switched on fired
|       +-- LostReply           as if an answer had not come in time: a TimeoutError too
+-- DeploymentError             a deployment can't be made, found or changed
+-- JobError                    a Spark job can't be run or found
+-- KnowledgeError              documents can't be embedded, stored or searched
|   +-- DocumentError           one document can't be read, or isn't what it says
"""

from __future__ import annotations


class LLMAgentOSError(Exception):
    """Base of the tree.

    Args:
        what: what happened and where: topic, partition, offset, conversation, file, line.
        fix: what the reader can do about it; printed on a line of its own.
        kept: what was kept, and where to find it, where anything could have been lost.
    """

    #: Exit status of a command that ends by this error (2 is a usage error, as in click).
    exit_code = 1

    def __init__(self, what: str, *, fix: str = "", kept: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.kept = kept

    def __str__(self) -> str:
        lines = [self.what]
        if self.kept:
            lines.append(f"kept: {self.kept}")
        if self.fix:
            lines.append(f"fix: {self.fix}")
        return "\n".join(lines)


class SettingsError(LLMAgentOSError):
    """A setting has a wrong name, type or value."""

    exit_code = 2


class InputError(LLMAgentOSError):
    """Something that a person gave is wrong."""


class NodeError(LLMAgentOSError):
    """The local Kafka or Redis can't be started, reached or stopped."""


class BrokerError(LLMAgentOSError):
    """The Kafka cluster is out of reach or refuses."""


class TopicError(BrokerError):
    """A topic is missing, or has another number of partitions than it must."""


class AccessError(BrokerError):
    """Authentication failed, or an ACL denies the operation."""


class OffsetLost(BrokerError):
    """Offsets that the group has not handled are no longer in the log."""


class NotOwner(BrokerError):
    """Another worker has claimed the partition: what this one still does for it counts for nothing."""


class SchemaError(LLMAgentOSError):
    """The registry is out of reach, or knows no such schema."""


class IncompatibleSchema(SchemaError):
    """A new version of a schema breaks readers or writers of an old one."""


class UnknownSchema(SchemaError):
    """The registry was reached, and has no schema of that id or subject."""


class RecordError(LLMAgentOSError):
    """One record can't be decoded, or is invalid.

    `cause` is the short stable word that a dead letter carries.
    """

    def __init__(self, what: str, *, cause: str = "undecodable", fix: str = "", kept: str = "") -> None:
        super().__init__(what, fix=fix, kept=kept)
        self.cause = cause


class RecordTooLarge(RecordError):
    """One record is over the size that its topic takes."""


class DeliveryError(LLMAgentOSError):
    """Kafka did not acknowledge a record within the delivery timeout."""


class AgentError(LLMAgentOSError):
    """An agent's definition or behaviour is wrong."""


class UnknownAgent(AgentError):
    """No deployment serves an agent of that name."""


class AnswerError(AgentError):
    """The asked agent answered with an error."""


class AnswerTimeout(AgentError):
    """No answer came before the question's deadline."""


class StepError(AgentError):
    """A step can't be run as it was asked for, or its outcome can't be used."""


class ResultError(StepError):
    """A result of a step can't be recorded, or be read again."""


class StepFailed(StepError):
    """A step ended by an error that it records as its result: every rerun is given this.

    `kind` is the name of the error's class.
    """

    def __init__(self, what: str, *, kind: str) -> None:
        super().__init__(what)
        self.kind = kind


class StepUnknown(StepError):
    """A step that may run once at most was begun, and what became of it is not known.

    `key` is the idempotency key that it was given: who was called can say what became of it.
    """

    def __init__(self, what: str, *, key: str, fix: str = "") -> None:
        super().__init__(what, fix=fix)
        self.key = key


class ChangedCode(StepError):
    """A rerun met another step than the journal has: its code was changed, or does not repeat itself.

    Attributes:
        newer: the journal has marks (`ctx.version`) that the code did not come by: a worker with newer code ran it.
    """

    newer: bool = False


class ToolError(AgentError):
    """A tool can't be run where it is to run, or what serves it does not answer: nothing that a model could mend."""


class DataRefused(AgentError):
    """A request to the data service is wrong, not permitted, or can't be done; nothing was changed."""


class StateError(AgentError):
    """What a handler left to be remembered of its conversation can't be kept, or there is nothing of the sort."""


class ChangedState(StateError):
    """What is remembered of a conversation can't be read by the code as it is: the class was changed."""


class ModelError(AgentError):
    """A model gave no answer that can be used."""


class ModelFailure(ModelError):
    """A model did not answer.

    `kind` is why: `down` (out of reach), `slow` (silent for too long), `overloaded` (429, 5xx), `cut` (broken off in
    mid-answer), `garbled` (what came is not the protocol), `refused` (it does not take the question). `after_s` is the
    pause in seconds that its endpoint asks for before it is asked again; None: it said none.
    """

    def __init__(self, what: str, kind: str, *, after_s: float | None = None, fix: str = "") -> None:
        super().__init__(what, fix=fix)
        self.kind = kind
        self.after_s = after_s

    @property
    def passes(self) -> bool:
        """Whether the same question may be answered a little later."""
        return self.kind != "refused"


class ContextTooLong(ModelError):
    """The question has more tokens than the model takes, and nothing of it can be left out."""


class BadAnswer(ModelError):
    """The model's answer is not of the form that was asked for, and neither was its second try."""


class BudgetSpent(ModelError):
    """A bound on turns, tokens or dollars is reached: of this call, the conversation or the tenant."""


class InjectedFault(AgentError):
    """A fault that somebody switched on fired: nothing is wrong with the agent."""


class LostReply(InjectedFault, TimeoutError):
    """A fault that looks like an answer that did not come in time."""


class DeploymentError(LLMAgentOSError):
    """A deployment can't be made, found or changed."""


class JobError(LLMAgentOSError):
    """A Spark job can't be run or found."""


class KnowledgeError(LLMAgentOSError):
    """Documents can't be embedded, stored or searched."""


class DocumentError(KnowledgeError):
    """One document can't be read, or isn't what its name says; the text reads on after that name."""
