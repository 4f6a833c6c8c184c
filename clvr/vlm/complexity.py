"""What a prompt asks for, counted by a VLM; and the same prompt with one element less (appendix A.7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BeforeValidator, Field

from ..probe.complexity import Parts, words
from ..trajectory import Usage
from . import replies, templates
from .asking import ask, usable
from .chat import ChatClient, Message
from .replies import ReplyModel, array_schema, object_schema

MOST = 200
"""Entries of a list, and instances of one entity, that are believed."""
M = TypeVar("M", bound=ReplyModel)
Constraint = Literal["text", "style", "absence", "other"]


def _constraint(value: object) -> object:
    word = str(value).strip().lower()
    return word if word in get_args(Constraint) else "other"


def _count(value: object) -> object:
    return 1 if value is None else value


class EntityReply(ReplyModel):
    name: Annotated[str, Field(min_length=1)]
    count: Annotated[int, Field(ge=1, le=MOST), BeforeValidator(_count)] = 1
    attributes: Annotated[list[str], Field(max_length=MOST), BeforeValidator(replies.listed)] = Field(
        default_factory=list
    )


class RelationReply(ReplyModel):
    subject: str
    relation: str
    object: str


class ConstraintReply(ReplyModel):
    kind: Annotated[Constraint, BeforeValidator(_constraint)] = "other"
    what: str = ""


class GraphReply(ReplyModel):
    """A prompt's semantic dependency graph."""

    entities: Annotated[list[EntityReply], Field(min_length=1, max_length=MOST)]
    relations: Annotated[list[RelationReply], Field(max_length=MOST), BeforeValidator(replies.listed)] = Field(
        default_factory=list
    )
    constraints: Annotated[list[ConstraintReply], Field(max_length=MOST), BeforeValidator(replies.listed)] = Field(
        default_factory=list
    )

    def parts(self, prompt: str) -> Parts:
        """Eq. 31: instances, and attribute edges to each of them. The words are counted, not asked for."""
        kinds = [constraint.kind for constraint in self.constraints]
        return Parts(
            entities=sum(entity.count for entity in self.entities),
            attributes=sum(entity.count * len(set(entity.attributes)) for entity in self.entities),
            relations=len(self.relations),
            words=words(prompt),
            text=kinds.count("text"),
            style=kinds.count("style"),
            absence=kinds.count("absence"),
            other=kinds.count("other"),
        )


class TrimReply(ReplyModel):
    removed: str = ""
    request: Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]


class PromptReader:
    """A `probe.Reader` that asks a VLM; no picture is shown. `usage` is what it cost so far."""

    def __init__(self, client: ChatClient) -> None:
        self._client = client
        self.usage = Usage()

    @property
    def name(self) -> str:
        return f"{self._client.name} ({templates.identity('complexity')})"

    def count(self, prompt: str) -> Parts:
        """Raises VLMError."""
        graph = self._ask("complexity", prompt, graph_schema(), GraphReply)
        return graph.parts(prompt)

    def simpler(self, prompt: str) -> Iterator[str]:
        """The prompt without one secondary element; nothing where none is left. Raises VLMError."""
        request = self._ask("trim", prompt, trim_schema(), TrimReply).request
        if request and words(request) < words(prompt):
            yield request

    def _ask(self, name: templates.PromptName, prompt: str, schema: Mapping[str, Any], form: type[M]) -> M:
        messages = [Message("system", (templates.text(name),)), Message("user", (f"Request: {prompt}",))]
        asked = ask(self._client, messages, schema, lambda reply: replies.read(reply.text, form))
        self.usage += asked.usage
        return usable(asked, f"answer about {prompt!r:.80}")


def graph_schema() -> dict[str, Any]:
    text = {"type": "string"}
    entity = object_schema(name=text, count={"type": "integer"}, attributes=array_schema(text))
    relation = object_schema(subject=text, relation=text, object=text)
    constraint = object_schema(kind={"type": "string", "enum": list(get_args(Constraint))}, what=text)
    return object_schema(
        entities=array_schema(entity, minItems=1),
        relations=array_schema(relation),
        constraints=array_schema(constraint),
    )


def trim_schema() -> dict[str, Any]:
    return object_schema(removed={"type": "string"}, request={"type": "string"})
