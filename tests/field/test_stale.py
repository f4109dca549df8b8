"""Values that would be old without a word: what a task sees is what is there now, or it is told.

Names looked up by a text, modules that no import has made, nested functions of modules, parts of
classes and functions that change in place, the order in which things are rebuilt, modules that are
loaded again.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

# zygote and spawn differ in how workers are born, not in what goes to them.
SOME = ["fork", "zygote", pytest.param("spawn", marks=pytest.mark.slow)]

CHECK = """
import sys
import forkmill as fm

METHOD = {method!r}
wrong = []

def check(what, got, expected):
    if got != expected:
        wrong.append(f"{{what}}: {{got!r}} instead of {{expected!r}}")

def look_at(pool, what, f, *args):
    check(what, pool.submit(f, *args).result(20), f(*args))
    check(what + " by map", list(pool.map(f, *([arg] for arg in args or [0]))), [f(*args)])
"""


@pytest.fixture(params=SOME)
def run_main(request: pytest.FixtureRequest, run_script):
    """Run code as a program that has check() and look_at()."""

    def run(code: str) -> None:
        run_script(
            CHECK.format(method=request.param)
            + textwrap.dedent(code)
            + "\nassert not wrong, '\\n'.join(wrong)\n"
        )

    return run


def test_names_that_code_has_as_a_text(run_main) -> None:
    run_main(
        """
        import threading
        import __main__ as me
        K, L, lock, ev = 1, [1], threading.Lock(), eval
        class Obj:
            def __init__(self): self.v = 1
        obj = Obj()
        def F(): return K
        def by_eval(_=0): return eval("K"), eval("L[-1]"), eval("F()"), eval("obj.v")
        def by_globals(_=0): return globals()["K"], globals()["L"][-1]
        def by_import(_=0):
            import __main__
            return __main__.K, __main__.F(), __main__.obj.v
        def by_modules(_=0): return sys.modules["__main__"].K, sys.modules[__name__].F()
        def by_alias(_=0): return me.K, me.F(), me.obj.v
        def by_vars(_=0): return vars(me)["K"]
        def by_frame(_=0): return sys._getframe().f_globals["K"]
        def by_exec(_=0):
            space = {}
            exec("r = K + L[-1]", globals(), space)
            return space["r"]
        def helper(): return eval("K"), eval("later" if L[1:] else "0")
        def by_helper(_=0): return helper()
        class Looks:
            def get(self, _=0): return eval("K"), eval("F()")
        def by_other_name(_=0): return ev("K")
        def locked(_=0):
            "Evaluated with a lock: eval, lock."
            return K
        with fm.ProcessPool(1, start_method=METHOD) as pool:
            for step in range(3):
                for f in (by_eval, by_globals, by_import, by_modules, by_alias, by_vars, by_frame,
                          by_exec, by_helper, Looks().get, by_other_name, locked,
                          lambda _=0: eval("K"), lambda _=0: me.F()):
                    look_at(pool, f"{f} {step}", f)
                K += 1
                L.append(step)
                obj.v += 1
                later = step
                if step == 0:
                    def F(): return "new", K
        for context in ("ipc_fork:1", "cow_fork:1", "thread:1"):
            run = fm.Pipeline().source([0]).map(by_eval, context=context).run()
            check(context, run.outputs, [by_eval()])
        """
    )


def test_a_text_that_comes_as_an_argument_is_right_or_told(run_main) -> None:
    run_main(
        """
        import threading
        K, L, lock = 1, [1], threading.Lock()
        class Obj:
            x = 1
        obj = Obj()
        obj.v = 1
        def F(): return K
        def look(text): return eval(text)
        def names_all(): return Obj.x, F(), obj.v
        TEXTS = "K", "L[-1]", "F()", "obj.v", "Obj.x", "lock is None"
        with fm.ProcessPool(1, start_method=METHOD) as pool:
            for step in range(4):
                for text in TEXTS:
                    try:
                        check(f"{text} {step}", pool.submit(look, text).result(20), eval(text))
                    except NameError as error:
                        told = any("Pass it as an argument" in note
                                   for note in getattr(error, "__notes__", ()))
                        changed = text in ("F()", "obj.v", "lock is None") and step > 0
                        check(f"{text} {step} is told", told or METHOD != "fork", True)
                        check(f"{text} {step} has changed", changed or METHOD != "fork", True)
                check(f"named {step}", pool.submit(names_all).result(20), names_all())
                K += 1
                L.append(step)
                obj.v += 1
                Obj.x += 1
                lock = threading.Lock()
                if step == 1:
                    def F(): return "new", K
        """
    )


SCRIPT = """
import functools, threading
K, L, state, lock = 1, [1], None, threading.Lock()
class C:
    x = 1
    def get(self, _=0): return self.x, K
c = C()
def helper(): return K, L[-1]
@functools.lru_cache
def cached(x): return x, helper()
def f(_=0): return K, helper(), c.get(), C().get(), cached(len(L))
def locked(_=0):
    with lock: return K
def set_up():
    global state
    state = "the worker's"
def get_state(): return state, K
def count():
    global state
    state = (state, 1)
    return state
with fm.ProcessPool(1, start_method=METHOD, initializer=set_up) as pool:
    for step in range(4):
        for g in (f, c.get, C().get, lambda _=0: (K, helper()), lambda _=0: f(),
                  *([locked] if METHOD == "fork" else [])):
            look_at(pool, f"{__name__} {g} {step}", g)
        back = pool.submit(lambda x: x, c).result(20)
        check("it comes home", type(back) is C, True)
        if METHOD == "fork":
            check("set", pool.submit(get_state).result(20), ("the worker's", K))
        K += 1
        L.append(step)
        C.x += 1
        c.x = step
        if step == 1:
            def helper(): return "new", K
        if step == 2:
            def f(_=0): return "another", helper()
    if METHOD == "fork":
        check("its own", pool.submit(count).result(20), ("the worker's", 1))
        check("and kept", pool.submit(get_state).result(20), (("the worker's", 1), K))
"""


def test_modules_that_no_import_has_made(run_main, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    run_main(
        f"""
        import runpy, types
        names = dict(METHOD=METHOD, fm=fm, check=check, look_at=look_at)
        script = {str(tmp_path / "script.py")!r}
        runpy.run_path(script, names)
        runpy.run_path(script, names, run_name="another")
        module = types.ModuleType("by_hand")
        sys.modules["by_hand"] = module
        vars(module).update(names)
        exec(compile(open(script).read(), script, "exec"), vars(module))
        # One that does not run as the pool is made.
        idle = types.ModuleType("idle")
        sys.modules["idle"] = idle
        exec("K = 1\\ndef h(): return K\\ndef f(_=0): return K, h()", vars(idle))
        with fm.ProcessPool(1, start_method=METHOD) as pool:
            for step in range(3):
                look_at(pool, f"idle {{step}}", idle.f)
                idle.K += 1
        """
    )


HELPER = """
K = 1
CONF = {"a": 1}
def top(_=0): return K
def make():
    n = [1]
    def inner(_=0): return K, CONF["a"], n[0]
    def more(): n[0] += 1
    return inner, more
short = lambda _=0: (K, CONF["a"])
def make_class():
    class Local:
        x = 1
        def get(self, _=0): return K, self.x
    return Local
def decorate(f):
    def wrapper(*args): return f(*args), K
    return wrapper
"""


def test_nested_functions_of_modules(run_main, tmp_path: Path) -> None:
    """They go by value, with what they name of their module as it is at the submit."""
    (tmp_path / "fm_helper.py").write_text(HELPER)
    run_main(
        f"""
        sys.path.insert(0, {str(tmp_path)!r})
        import fm_helper as helper
        inner, more = helper.make()
        Local = helper.make_class()
        number = 1
        @helper.decorate
        def decorated(_=0): return number
        with fm.ProcessPool(1, start_method=METHOD) as pool:
            for step in range(3):
                for f in (inner, helper.short, Local().get, decorated, lambda _=0: inner(),
                          lambda _=0: decorated()):
                    look_at(pool, f"{{f}} {{step}}", f)
                # What goes by its name has its own process's module, as in a stdlib pool.
                check("top", pool.submit(helper.top).result(20), 1)
                helper.K += 1
                helper.CONF["a"] += 1
                more()
                Local.x += 1
                number += 1
        """
    )


def test_a_module_that_is_loaded_again_is_told(run_main, tmp_path: Path) -> None:
    (tmp_path / "fm_helper.py").write_text(HELPER)
    run_main(
        f"""
        import importlib, warnings
        sys.path.insert(0, {str(tmp_path)!r})
        import fm_helper as helper
        def told(call):
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                call()
            return [(str(one.message)[:32], one.filename) for one in seen]
        text = "module fm_helper was loaded agai", __file__
        with fm.ProcessPool(1, start_method=METHOD) as pool:
            submit = lambda: pool.submit(helper.top).result(20)
            check("at first", told(submit), [])
            importlib.reload(helper)
            check("reloaded", told(submit), [text])
            check("once", told(submit), [])
            del sys.modules["fm_helper"]
            import fm_helper as helper
            check("imported again", told(lambda: list(pool.map(helper.top, [0]))), [text])
        with fm.ProcessPool(1, start_method=METHOD) as pool:
            check("a new pool", told(submit), [])
        """
    )


def test_what_changes_in_place(run_main) -> None:
    """Parts of classes, enums, functions, and containers that pickle itself refuses."""
    run_main(
        """
        import abc, collections, dataclasses, enum, functools, threading, types
        base = 1
        class E(enum.Enum):
            A = 1
            def m(self): return "m"
        E.note = 1
        class Flags(enum.Flag): X = 1
        @dataclasses.dataclass
        class D:
            a: int = 1
            b: list = dataclasses.field(default_factory=lambda: [base])
        def h(a=1, *, k=1): return a, k
        def bare(a, *, k=0): return a, k
        class C:
            x = 1
            class Inner: y = 1
            def get(self, d=1): return self.x, d
            @property
            def p(self): return 1
            @staticmethod
            def s(v=1): return v
            @classmethod
            def c(cls, v=1): return v, cls.x
        class Sub(C): pass
        class Meta(type):
            z = 1
            def hi(cls): return 1
        class Meta2(Meta): pass
        class WithMeta(metaclass=Meta): pass
        class P1:
            def who(self): return 1
        class P2:
            def who(self): return 2
        class Child(P1): pass
        child = Child()
        P = functools.partial(h, a=1)
        NT = collections.namedtuple("NT", "a b", defaults=(1,))
        def counted(f):
            @functools.wraps(f)
            def w(*a): return f(*a), w.calls
            w.calls = 0
            return w
        @counted
        def dec(): return base
        class Called:
            def __call__(self): return base
        call, ns, dq = Called(), types.SimpleNamespace(a=1), collections.deque([1])
        od, cm = collections.OrderedDict(a=1), collections.ChainMap({"a": 1})
        under = {"a": 1}
        proxy = types.MappingProxyType(under)
        class Slots: __slots__ = ("v",)
        sl = Slots()
        sl.v = 1
        class Desc:
            def __init__(self): self.v = 1
            def __get__(self, o, t=None): return self.v
        class HasDesc: d = Desc()
        class LD(dict): pass
        ld = LD()
        ld.attr = 1
        class Base(abc.ABC): q = 1
        class Deriv(Base): pass
        sd, meth = functools.singledispatch(lambda x: "default"), C().get
        class Th(threading.Thread): tag = 1
        class Exc(Exception): code = 1
        def outer():
            v = 1
            def get(): return v
            def put(x):
                nonlocal v
                v = x
            return get, put
        get, put = outer()
        ba = bytearray(b"a")
        def own(): return own.n
        @functools.lru_cache
        def remembers(n): return n, base
        own.n = 1
        class Cached:
            @functools.cached_property
            def v(self): return base
        cached = Cached()
        def code2(a=1, *, k=1): return "code", a, k
        looks = dict(
            enum=lambda _=0: (E.note, E.A.m(), getattr(E.A, "extra", None)),
            flag=lambda _=0: (getattr(Flags, "n", 0), Flags.X.value),
            data=lambda _=0: (D().a, D().b),
            h=lambda _=0: (h(), bare(0)),
            c=lambda _=0: (C().get(), C.Inner.y, C().p, C.s(), C.c()),
            sub=lambda _=0: (Sub.x, Sub().get()),
            meta=lambda _=0: (WithMeta.z, WithMeta.hi(), type(WithMeta).__name__),
            bases=lambda _=0: (Child().who(), child.who(), Child.__mro__[1].__name__),
            partial=lambda _=0: (P(), NT(0).b, dec(), call()),
            held=lambda _=0: (ns.a, list(dq), dict(od), dict(cm), dict(proxy), sl.v, bytes(ba)),
            more=lambda _=0: (HasDesc.d, dict(ld), ld.attr, Deriv.q, sd(1), meth()),
            others=lambda _=0: (Th.tag, Exc.code, get(), own(), cached.v),
            told=lambda _=0: (C.__doc__, h.__doc__, h.__name__),
        )
        with fm.ProcessPool(1, start_method=METHOD) as pool:
            for step in range(4):
                for what, f in looks.items():
                    look_at(pool, f"{what} {step}", f)
                # By its name alone, with no other global's name in its pickle.
                look_at(pool, f"remembers {step}", remembers, step)
                base += 1
                E.note += 1
                E.m = lambda self: ("m2", base)
                E.A.extra = Flags.n = D.a = base
                D.__init__.__defaults__ = (base, *D.__init__.__defaults__[1:])
                h.__defaults__, h.__kwdefaults__ = (base,), {"k": base}
                bare.__kwdefaults__ = {"k": base}
                C.x += 1
                C.Inner.y += 1
                C.p = property(lambda self, b=base: b)
                for method in (C.get, C.s, C.c.__func__):
                    method.__defaults__ = (base,)
                Meta.z += 1
                Meta.hi = lambda cls, b=base: b
                Child.__bases__ = (P2, P1) if step % 2 else (P2,)
                P.keywords["a"] = base
                NT.__new__.__defaults__ = (base,)
                for box in (od, cm, under, ld):
                    box[base] = 1
                dq.append(base)
                ba.extend(b"b")
                for one in (ns,): one.a += 1
                sl.v += 1
                vars(HasDesc)["d"].v += 1
                ld.attr += 1
                Base.q += 1
                dec.calls += 1
                sd.register(int, lambda x, b=base: b)
                Th.tag += 1
                Exc.code += 1
                own.n += 1
                put(base)
                cached.__dict__.pop("v", None)
                C.__doc__, h.__doc__, h.__name__ = str(base), str(base), f"h{base}"
                meth.__self__.x = base * 7
                if step == 1: WithMeta.__class__ = Meta2
                if step == 2: h.__code__ = code2.__code__
        """
    )


def test_what_rebuilding_an_object_looks_at_is_rebuilt_before(run_main) -> None:
    """Also instances of the program's own classes, and what has changed since the fork."""
    run_main(
        """
        import abc, dataclasses, pickle, threading
        class Config:
            def __init__(self): self.k = 1
        class A:
            def __init__(self, v): self.v, self.lock = v, threading.Lock()
            def __getstate__(self): return {"v": self.v}
            def __setstate__(self, state):
                self.v, self.list = state["v"] + config.k, [one.k for one in configs]
        class B(A):
            def __setstate__(self, state):
                super().__setstate__(state)
                self.o = type(other).__name__, isinstance(other, A), Inner.c.k
        A.child = B  # a base that leads to what derives from it
        class Inner: c = Config()
        config, configs, other = Config(), [Config(), Config()], A(5)
        a, b, first = A(1), B(2), B(7)
        def made(v): return Made(v + config.k)
        class Made:
            def __init__(self, v): self.v, self.list = v, B.__name__
            def __reduce__(self): return made, (self.v,)
        def of(x): return x.v, x.list, getattr(x, "o", None)
        def all_of(*_): return [of(x) for x in (a, b, first)]
        with fm.ProcessPool(2, start_method=METHOD) as pool:
            for step in range(3):
                for x in (A(1), B(2), first, Made(1)):
                    there = of(pickle.loads(pickle.dumps(x)))
                    check(f"{type(x)} {step}", pool.submit(of, x).result(20), there)
                    check(f"{type(x)} {step}", list(pool.map(of, [x, x])), [there] * 2)
                config.k += 1
                configs[0].k += 5
                Inner.c.k += 1
        # A long chain of classes and their instances is no deep recursion.
        exec("".join(
            f"class C{i}:\\n def get(self): return c{i + 1}.get()\\nc{i} = C{i}()\\n"
            for i in range(200)
        ))
        c200 = type("End", (), {"get": lambda self: "end"})()
        with fm.ProcessPool(1, start_method=METHOD) as pool:
            check("chain", pool.submit(C0.get, c0).result(20), "end")
        """
    )
