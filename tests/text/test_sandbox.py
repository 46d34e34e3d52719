"""Hostile templates: refused when loaded, or stopped within a second and with bounded memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import pytest

from headrace.errors import InvalidRequest, ModelFileError
from headrace.text.template import ChatTemplate

CHAT = [{"role": "user", "content": "hi"}]
GROW = "{%% set ns = namespace(x=%s, y=%s) %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ ns.x }}"
MILLION = "{% set x = 'a' * 1000000 %}"
LONG = "{% set x = 'a' * 3900000 %}{% for i in range(99999) %}"

REFUSED = {
    "nested parentheses": "{{ " + "(" * 6000 + "1" + ")" * 6000 + " }}",
    "nested ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "nested loops": "{% for a in [1] %}" * 50 + "{% endfor %}" * 50,
    "not not not": "{{ " + "not " * 20000 + "1 }}",
    "a.b.b.b": "{{ a" + ".b" * 20000 + " }}",
    "filters": "{{ 'a'" + "|upper" * 10000 + " }}",
    "huge literal": "{{ " + "9" * 90000 + " }}",
    "huge": "a" * 200_000,
    "unfinished": "{{" * 40000,
    "attr": "{{ ''|attr('__class__') }}",
    "center": "{{ 'a'|center(10**9) }}",
    "batch": "{{ [1]|batch(10**9, 0)|list }}",
    "include": "{% include 'x' %}",
    "import": "{% import 'x' as y %}",
    "from": "{% from 'x' import y %}",
    "extends": "{% extends 'x' %}",
    "block": "{% block x %}{% endblock %}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
}
STOPPED = {
    "endless": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "range": "{{ range(10**9)|list }}",
    "times": "{{ 'a' * 10**10 }}",
    "times, in parts": "{% set x = 'a' * 3000000 %}{% set y = x * 3 %}",
    "list times": "{{ ([0] * 4000000)|map('string')|list|length }}",
    "power": "{{ 9**9**9**9 }}",
    "numbers": GROW % ("10", "1", "{% set ns.x = ns.x * ns.x %}"),
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "printf": "{{ '%1000000000d' % 1 }}",
    "printf star": "{{ '%*d' % (1000000000, 1) }}",
    "printf filter": "{{ '%999999999d'|format(1) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "replace": MILLION + "{{ x.replace('a', x) }}",
    "replace filter": MILLION + "{{ x|replace('a', x) }}",
    "join": MILLION + "{{ x.join(x) }}",
    "join filter": MILLION + "{{ x|join(x) }}",
    "tilde": GROW % ("'aaaa'", "1", "{% set ns.x = ns.x ~ ns.x %}"),
    "plus": GROW % ("'aaaa'", "1", "{% set ns.x = ns.x + ns.x %}"),
    "set block": GROW % ("'aaaa'", "1", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "shared lists": GROW % ("[1]", "1", "{% set ns.x = [ns.x, ns.x] %}"),
    "shared dicts": GROW % ("1", "1", "{% set ns.x = {'a': ns.x, 'b': ns.x} %}"),
    "dict()": GROW % ("1", "1", "{% set ns.x = dict(a=ns.x, b=ns.x) %}"),
    "equality": GROW % ("[1]", "[1]", "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{{ ns.x == ns.y }}"),
    "cycle": "{% set ns = namespace(x=1) %}{% set ns.x = [ns] %}{{ ns.x }}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "two macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "json": "{{ [1]|tojson(indent=1000000000) }}",
    "indent": "{{ 'a\nb'|indent(1000000000, true) }}",
    "round": "{{ 1.5|round(1000000000, 'floor') }}",
    "sort": "{{ ('a' * 3900000)|list|sort|length }}",
    "map": "{{ ('a' * 3900000)|map('upper')|list|length }}",
    "slices": LONG + "{% set y = x[1:] %}{% endfor %}{{ 1 + '' }}",
    "upper": LONG + "{% set y = x|upper %}{% endfor %}",
    "split": LONG + "{% set y = x.split() %}{% endfor %}",
    "search": LONG + "{{ 'b' in x }}{% endfor %}",
    "search backwards": MILLION + "{{ x.rfind('ab' ~ 'a' * 400000) }}",
    "strip": MILLION + "{{ x.strip('b' * 400000 ~ 'a') }}",
    "trim filter": MILLION + "{{ x|trim('b' * 400000 ~ 'a') }}",
    "long division": "{% set k = 'f' * 400000 %}{{ ((k * 9)|int(0, 16) // (k * 4)|int(0, 16)) > 1 }}",
    "sum of lists": "{% set x = ('ab' * 15 ~ ' ') * 1000 %}{{ (x * 80).split()|map('list')|sum(start=[])|length }}",
    "mapped sums": "{% set x = [[[1]] * 9000] * 9 %}{{ x|map('sum', start=[])|list|length }}",
    "keys of a sort": MILLION + "{{ [0, 0, 0, 0, 0, 0, 0, 0, 0]|map('d', x, true)|sort|length }}",
    "map lower": MILLION + "{{ ([0] * 9999)|map('d', x, true)|map('lower')|list|length }}",
    "slices at once": MILLION + "{% set y = [" + "x[1:]," * 2000 + "] %}",
    "filters at once": MILLION + "{% set y = [" + "x|lower," * 2000 + "] %}",
    "searches at once": "{% set x = 'a' * 3900000 %}" + "{% set y = [" + "'ab' in x," * 3000 + "] %}",
    "count in a list": MILLION + "{{ (([0] * 9999)|map('d', x, true)|list).count(x ~ 'b') }}",
    "in a list": MILLION + "{{ (x ~ 'b') in ([0] * 9999)|map('d', x, true)|list }}",
    "pieces": "{% set x = ('aa ' * 400) * 1200 %}{% set y = [" + "x.split()," * 99 + "] %}",
    "namespaces": "{% set x = namespace({'a': 'b' * 3900000, 'c': 'b' * 200000}) %}",
    "static": "{% for i in range(99999) %}" + "x" * 90000 + "{% endfor %}",
    "static macro": "{% macro f() %}"
    + "x" * 90000
    + "{% endmacro %}{% for i in range(99999) %}{{ f()|length }}{% endfor %}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['x'] }}",
    "init": "{{ namespace.__init__.__globals__ }}",
    "append": "{{ [].append(1) }}",
    "lipsum": "{{ lipsum(1000000) }}",
    "map attr": "{{ ['']|map(attribute='__class__.__mro__')|first|length + 1 }}",
    "map filter": "{{ ['']|map('attr', '__class__')|list }}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_when_loaded(name: str) -> None:
    begin = time.thread_time()
    with pytest.raises(ModelFileError, match="chat template 'default'"):
        ChatTemplate({"default": REFUSED[name]}).prepare()
    assert time.thread_time() - begin < 3, "under 0.3 s on an idle machine"


@pytest.mark.parametrize("name", STOPPED)
def test_stopped_when_rendered(name: str) -> None:
    template = ChatTemplate({"default": STOPPED[name]})
    template.prepare()
    begin = time.thread_time()
    with pytest.raises(InvalidRequest, match="chat template"):
        template.render(CHAT)
    assert time.thread_time() - begin < 3, "under 0.7 s on an idle machine"


def test_all_of_them_together_take_little_memory() -> None:
    program = """
        import re
        from pathlib import Path
        from headrace.errors import InvalidRequest
        from headrace.text.template import ChatTemplate
        from tests.text.test_sandbox import CHAT, STOPPED

        def peak():
            # Not ru_maxrss, which begins with what the process that started this one had.
            return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

        ChatTemplate({"default": "x"}).render(CHAT)
        before = peak()
        for source in STOPPED.values():
            try:
                ChatTemplate({"default": source}).render(CHAT)
            except InvalidRequest:
                pass
        print((peak() - before) // 1024)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    mebibytes = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    assert mebibytes < 100, f"{mebibytes} MiB; 20 on the machine of 2026-11"


def test_python_is_out_of_reach() -> None:
    for source in (
        "{{ ''['__class__'] }}",
        "{{ self.__init__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ (1).real }}",
    ):
        assert ChatTemplate({"default": source}).render(CHAT) == ""


def test_ordinary_means_are_there() -> None:
    source = (
        "{%- set ns = namespace(n=0) -%}"
        "{%- for k, v in {'a': 1, 'b': [2]}.items() -%}{%- set ns.n = ns.n + loop.index -%}"
        "{{ k ~ '=' ~ v }}{{ ',' if not loop.last }}{%- endfor -%}|{{ ns.n }}|{{ 'x,y'.split(',')|join('-') }}|"
        "{{ ['b', 'a']|sort|first }}|{{ messages|selectattr('role', 'equalto', 'user')|list|length }}|{{ 7 % 4 }}|"
        "{{ '%s!' % 'so' }}|{{ 'a-b'.replace('-', '+') }}|{{ {'x': ['é']}|tojson }}|{{ messages[-1:][0].content }}|"
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}/{{ loop.length }} {% endfor %}|"
        "{% macro m(x, y=2) %}<{{ x }}{{ y }}>{% endmacro %}{{ m(1) }}{{ m(1, y=3) }}|{{ 2 ** 3 * 'ab' }}|{{ none }}|"
        "{% for i in [1] %}{{ 'a'.replace('a', 'b') }}{{ 'ab'.join('cd') }}{{ dict(a=i).a }}{% endfor %}|"
        "{{ [1, 2]|sum }}{{ [{'n': 1}]|sum(attribute='n', start=3) }}|{{ ' a '|trim }}{{ '-b-'|trim('-') }}|"
        "{{ range(4)|max }}{{ ['B', 'a']|map('lower')|sort|join }}|{{ 'a.b'.rsplit('.', 1)[-1] }}|{{ 'x'.join('ab') }}|"
        "{{ messages[0] == messages[-1] }}|{{ 'user' in messages[0].values() }}|{{ 2 is in [1, 2] }}|{{ 'abc'[::-1] }}"
    )
    assert ChatTemplate({"default": source}).render(CHAT) == (
        'a=1,b=[2]|3|x-y|a|1|3|so!|a+b|{"x": ["é"]}|hi|0/9 1/9 |<12><13>|' + "ab" * 8 + "|None|"
        "bcabd1|34|ab|3ab|b|axb|True|True|True|cba"
    )


def test_a_long_chat_stays_within_the_budget() -> None:
    long = [{"role": "user", "content": "x" * 3000}] * 1000
    source = "{% for m in messages %}{{ '<' + m.role + '>' + m.content | trim + '\n' }}{% endfor %}"
    assert len(ChatTemplate({"default": source}).render(long)) == 1000 * 3007
