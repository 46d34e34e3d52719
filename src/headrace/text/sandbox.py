"""Jinja for chat templates out of model files: what a template may do, and how much of it.

Jinja's own immutable sandbox keeps a template away from Python's internals. It bounds neither time nor memory, so on
top of it: only listed filters and methods exist; whatever copies its inputs, makes something larger of them or takes
long over them is metered (operators, comparisons, slices, containers, loops, calls, filters, output; see `metering`);
nothing is computed when the template is compiled.

The import of jinja2 takes 60 ms; this module is imported when a chat model is loaded, in a thread of its own.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.meta import find_undeclared_variables
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from msgspec import Struct

from headrace.text import metering
from headrace.text.metering import STEP, Meter, spend

MAX_SOURCE_CHARS = 100_000
"""Longest template. Real ones have up to 30,000 characters."""
_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset((
        "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii",
        "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip",
        "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit",
        "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
    )),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
}  # fmt: skip
_UNBOUNDED_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort",
    "title", "unique", "upper",
)  # fmt: skip
_METERS: Mapping[str, str] = {
    **dict.fromkeys(("items", "list", "map", "reject", "rejectattr", "select", "selectattr"), " items"),
    **dict.fromkeys(("dictsort", "groupby", "max", "min", "sort", "unique"), " held"),
    **dict.fromkeys(("capitalize", "lower", "reverse", "title", "upper"), " text"),
    **dict.fromkeys(("float", "int"), " digits"),
}
"""Filters of Jinja's that are used as they are, and what their input passes through first."""
_JINJAS_OWN = ("_block_vars", "_loop_vars")
"""What Jinja adds to the keywords of calls."""
_STATIC = " static"
# Names with a space cannot be written in a template: these are put there by `_Rewrite`.
_METERED_FILTERS: Mapping[str, Any] = {
    " compared": metering.compared,
    " digits": metering.digits,
    " each": metering.each,
    " held": metering.held,
    " items": metering.items,
    " join": metering.join,
    " sized": metering.sized,
    " sliced": metering.sliced,
    " text": metering.text,
    "format": metering.format_,
    "indent": metering.indent,
    "join": metering.join,
    "replace": metering.replace,
    "round": metering.round_,
    "safe": metering.as_text,
    "string": metering.as_text,
    "sum": metering.sum_,
    "tojson": metering.tojson,
    "trim": metering.trim,
}


class _Rewrite(NodeTransformer):
    """Puts the meters into a parsed template, and refuses the statements that reach outside it."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise SecurityError("a chat template may not loop recursively")
        self.generic_visit(node)
        static = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = _filtered(node.iter, " each", nodes.Const(static))
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        self.generic_visit(node)
        if node.name in _METERS and node.node is not None:
            node.node = _filtered(node.node, _METERS[node.name])
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _compared(node.expr)
        for operand in node.ops:
            operand.expr = _compared(operand.expr)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        if node.args:
            node.node = _compared(node.node)
            node.args = [_compared(each) for each in node.args]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, " sliced") if isinstance(node.arg, nodes.Slice) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.Tuple(node.nodes, "load"), " join")

    def _container(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node, nodes.Tuple) and node.ctx != "load":
            return node  # A target of an assignment.
        return _filtered(node, " sized")

    visit_List = visit_Tuple = visit_Dict = _container

    def _refused(self, node: nodes.Node) -> nodes.Node:
        raise SecurityError(f"a chat template may not use {type(node).__name__.lower()}")

    visit_Include = visit_Import = visit_FromImport = visit_Extends = visit_Block = _refused


def _filtered(node: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None)


def _compared(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filtered(node, " compared")


class _Generation(Extension):
    """``{% generation %}`` marks what the assistant said, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it an instance attribute)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Parse to the body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The one environment of all chat templates; with `transformers`' settings, so that texts come out the same."""

    intercepted_binops = frozenset(metering.OPERATORS)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=metering.emit,
            extensions=[_Generation, loopcontrols],
        )
        self.filters = {name: FILTERS[name] for name in _UNBOUNDED_FILTERS} | dict(_METERED_FILTERS)
        self.globals = {
            "range": self.globals["range"],
            "namespace": Namespace,
            "dict": dict,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def compiled(self, source: str) -> CompiledTemplate:
        """A template ready to be rendered.

        Raises:
            TemplateError: the source is not a template, or one that uses what it may not.
        """
        if len(source) > MAX_SOURCE_CHARS:
            raise SecurityError(f"the template has {len(source)} characters; the limit is {MAX_SOURCE_CHARS}")
        tree = self.parse(source)
        asked = frozenset(find_undeclared_variables(tree))
        tree = _Rewrite().visit(tree)
        template = Template.from_code(self, self.compile(tree), self.make_globals(None))
        return CompiledTemplate(template, asked, len(source))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Only listed methods of plain data; of Jinja's own objects, what has no underscore."""
        for kind, allowed in _METHODS.items():
            if isinstance(obj, kind):
                return attr in allowed
        own = isinstance(obj, (LoopContext, Macro, Namespace, Undefined))
        return own and bool(super().is_safe_attribute(obj, attr, value))

    def wrap_str_format(self, value: Any) -> None:
        """``str.format`` is an attribute like any other here, and not a listed one."""

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Meter what an operator makes."""
        return metering.OPERATORS[operator](context, left, right)

    def call_filter(
        self,
        name: str,
        value: Any,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        context: Context | None = None,
        eval_ctx: EvalContext | None = None,
    ) -> Any:
        """What ``map`` applies: with the meters that `_Rewrite` puts before a filter that is written out."""
        if name in _METERS:
            value = self.filters[_METERS[name]](context, value)
        return super().call_filter(name, value, args, kwargs, context, eval_ctx)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Meter calls; the names are Jinja's, so that a template may pass any keyword."""
        spend(__context, STEP + (__context.parent[_STATIC] if isinstance(__obj, Macro) else 0))
        given = {name: value for name, value in kwargs.items() if name not in _JINJAS_OWN}
        if __obj is dict or __obj is Namespace:
            metering.sized(__context, [*args, given])
        if isinstance(__obj, types.BuiltinMethodType):
            if isinstance(__obj.__self__, str):
                return metering.string_method(__context, __obj.__self__, __obj.__name__, *args, **given)
            metering.compared(__context, __obj.__self__)  # count and index
        return super().call(__context, __obj, *args, **kwargs)


class CompiledTemplate(Struct, frozen=True):
    """A template with its meters built in. ``asked`` are the variables that it uses and does not set itself."""

    template: Template
    asked: frozenset[str]
    static: int
    """Length of the source: no call of a macro writes more literal text than that, loops apart."""

    def render(self, variables: Mapping[str, Any]) -> str:
        """Render within the budgets.

        Raises:
            TemplateError: the template raised it, or overstepped a budget.
            Exception: whatever else goes wrong inside.
        """
        context = self.template.new_context({**variables, **Meter().variables, _STATIC: self.static})
        return "".join(self.template.root_render_func(context))


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message)[:2000])


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(str(form)[:128])
