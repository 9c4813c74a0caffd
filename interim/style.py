import sys

sys.argv = [sys.argv[0], *sys.argv[1:]]
src = open("val.py").read().split("F=900_000")[0]
exec(src)
F = 900_000


def share(x):
    x = list(x)
    return f"{100 * sum(x) / max(1, len(x)):.1f}% of {len(x)}"


s = f.held_out(n, F + 4000)


def go(name, **k):
    print(name, share(v == c for v, (c, _) in zip(judge(f.drawn(s, **k)), s)), flush=True)


go("plain")
go("sketch", line_style="sketch")
go("grid", background="grid")
go("both 224", line_style="sketch", background="grid")
go("both 112", line_style="sketch", background="grid", size=112)
go("both 448", line_style="sketch", background="grid", size=448)
