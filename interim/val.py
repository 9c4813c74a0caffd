"""val.py FOLDER [n]: on validation seeds from 900,000."""

import sys, multiprocessing
from collections import defaultdict
import torch
from pathlib import Path

torch.set_num_threads(1)
from transformers import AutoProcessor
from tools.demo import figures as f
from tools.demo.build_demo import SafeQwen2_5_VLForConditionalGeneration as M, SUBJECTS
from tools.demo.pictograms import subject, PICTOGRAMS
from tools.demo.scenes import draw_scene

folder = Path(sys.argv[1])
n = int(sys.argv[2]) if len(sys.argv) > 2 else 400
model = M.from_pretrained(folder, dtype=torch.float32).eval()
processor = AutoProcessor.from_pretrained(sys.argv[3] if len(sys.argv) > 3 else folder)
by_subject = len(model.config.safety_categories) > 20
of = {s: c for c in f.NAMES for s in PICTOGRAMS[c]}
if by_subject:
    f.NAMES_ = f.NAMES


def judge(pics):
    out = []
    for i in range(0, len(pics), 25):
        b = pics[i : i + 25]
        inputs = processor(text=[f.prompt_for("")] * len(b), images=b, padding=True, return_tensors="pt")
        with torch.inference_mode():
            out += model.guard(**inputs).img_safety_probs.argmax(-1).tolist()
    names = model.config.safety_categories
    return [of[names[o]] if by_subject else names[o] for o in out]


F = 900_000


def share(x):
    x = list(x)
    return f"{100 * sum(x) / max(1, len(x)):.1f}% of {len(x)}"


s = f.held_out(n, F)
print("singles 224", share(v == c for v, (c, _) in zip(judge(f.drawn(s)), s)), flush=True)
s = f.held_out(n, F + 2000)
print("singles 112", share(v == c for v, (c, _) in zip(judge(f.drawn(s, size=112)), s)), flush=True)
s = f.held_out(n, F + 4000)
print(
    "unseen style 224",
    share(
        v == c
        for v, (c, _) in zip(judge(f.drawn(s, line_style=f.HELD_OUT_LINE_STYLE, background=f.HELD_OUT_BACKGROUND)), s)
    ),
    flush=True,
)
tasks = [(f.HARMS[i % 19], F + 6000 + i) for i in range(n)]
sc = [draw_scene(*t) for t in tasks]
v = judge([x.picture for x in sc])
ok = [a == x.label for a, x in zip(v, sc)]
print("scenes one harm", share(ok))
d = defaultdict(list)
w = defaultdict(list)
for o, x in zip(ok, sc):
    d[len(x.drawings)].append(o)
    seen = x.drawings[0].width * (224 * 224 / (x.picture.width * x.picture.height)) ** 0.5
    w[min(int(seen // 20 * 20), 200)].append(o)
for k in sorted(d):
    print("  num", k, share(d[k]))
for k in sorted(w):
    print("  width", k, share(w[k]))
print("  called safe", share(a == "safe" for a in v))
if not by_subject or True:
    sc = [draw_scene("safe", F + 8000 + i) for i in range(n // 3)]
    print("scenes safe", share(a == "safe" for a in judge([x.picture for x in sc])), flush=True)
