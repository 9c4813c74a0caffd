"""Vision tower from nothing, by a label for each drawing of a scene."""

import sys, time, math, random, os

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import torch

torch.set_num_threads(1)
import torch.nn.functional as F
from torch import nn
from pathlib import Path
from tools.demo import build_demo as b, figures as f
from tools.demo import vision
from tools.demo.muon import Muon, is_muons
from tools.demo.scenes import draw_scene, HARMS
from tools.demo.pictograms import subject, draw, PICTOGRAMS

steps = int(sys.argv[1])
out = Path(sys.argv[2])
init = sys.argv[3] if len(sys.argv) > 3 else None
lr = float(os.environ.get("LR", "0.03"))
SUB = {s: i for i, s in enumerate(vision.SUBJECTS)}
OF = {s: c for c in f.NAMES for s in PICTOGRAMS[c]}
processor = b.build_processor()
ip = processor.image_processor


class Scenes(torch.utils.data.Dataset):
    def __len__(self):
        return steps * 32

    def __getitem__(self, i):
        seed = 300_000 + i
        rng = random.Random(f"dense-{seed}")
        if rng.random() < 0.25:  # a drawing as `draw` makes it
            c = rng.choice(HARMS) if rng.random() < 0.75 else "safe"
            p = draw(c, seed, size=rng.choice((112, 168, 224, 448)))
            boxes = [((0, 0, p.width, p.height), subject(c, seed))]
        else:
            # any drawings: harms everywhere, for seeing only
            c = rng.choice(HARMS)
            s = draw_scene(
                c,
                seed,
                num_drawings=(nn_ := rng.choice((1, 1, 2, 3, 4, 4))),
                size=((sz := rng.randint(112, 336)), sz) if nn_ == 1 else None,
                least_seen=180 if nn_ == 1 else 84,
                pens=(0.4, 1.1),
            )
            p = s.picture
            boxes = [(d.box, d.subject) for d in s.drawings]
        x = ip([p], return_tensors="pt")
        t, h, w = x["image_grid_thw"][0].tolist()
        rows, cols = h // 2, w // 2
        m = []
        y = []
        for (l, tp, r, bt), name in boxes:
            ys = torch.arange(rows).add(0.5) * p.height / rows
            xs = torch.arange(cols).add(0.5) * p.width / cols
            mask = ((ys >= tp) & (ys <= bt))[:, None] & ((xs >= l) & (xs <= r))[None]
            m.append(mask.flatten())
            y.append(SUB[name])
        return x["pixel_values"], x["image_grid_thw"], torch.stack(m), torch.tensor(y)


def collate(batch):
    return batch


if __name__ == "__main__":
    model = b.build_model(
        processor.tokenizer, num_layers=0, safety_categories=vision.SUBJECTS, safety_num_hidden_layers=0
    )
    if init:
        st = torch.load(init)
        model.model.visual.load_state_dict(st["visual"])
    else:
        pics = [draw("safe" if i % 5 == 0 else HARMS[i % 19], i, size=112) for i in range(320)]
        small = b.build_processor(112 * 112).image_processor
        b.prepare_vision(model.model.visual, small(pics, return_tensors="pt")["pixel_values"])
    visual = model.model.visual
    head = nn.Sequential(nn.LayerNorm(192), nn.Linear(192, 192), nn.GELU(), nn.Linear(192, 75))
    with torch.no_grad():
        head[0].weight.fill_(1.0)
    if init:
        head.load_state_dict(st["head"])
    named = dict(visual.named_parameters())
    mats = [p for n, p in named.items() if is_muons("model.visual." + n, p)]
    rest = [p for n, p in named.items() if not is_muons("model.visual." + n, p)]
    opts = [
        Muon(mats, lr=lr, weight_decay=0.05),
        torch.optim.AdamW([*rest, *head.parameters()], lr=lr / 20, betas=(0.9, 0.98), weight_decay=0.05),
    ]
    base = [[g["lr"] for g in o.param_groups] for o in opts]
    loader = torch.utils.data.DataLoader(Scenes(), batch_size=32, num_workers=1, collate_fn=collate, prefetch_factor=6)

    def boxes_of(batch):
        px = torch.cat([x[0] for x in batch])
        grid = torch.cat([x[1] for x in batch])
        o = visual(px, grid_thw=grid)
        tok = (
            o
            if torch.is_tensor(o)
            else (o.pooler_output if hasattr(o, "pooler_output") and o.pooler_output is not None else o[0])
        )
        sizes = [x[2].shape[1] for x in batch]
        feats = []
        for t, x in zip(tok.split(sizes), batch):
            m = x[2].float()
            feats.append(m @ t / m.sum(1, keepdim=True).clamp(min=1))
        return head(torch.cat(feats)), torch.cat([x[3] for x in batch])

    t0 = time.time()
    right = n = 0
    tot = 0.0
    for i, batch in enumerate(loader):
        k = min(1, (i + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * i / steps)))
        for o, bs in zip(opts, base):
            for g, l in zip(o.param_groups, bs):
                g["lr"] = l * k
        logits, y = boxes_of(batch)
        loss = F.cross_entropy(logits, y)
        for o in opts:
            o.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*visual.parameters(), *head.parameters()], 1.0)
        for o in opts:
            o.step()
        right += int((logits.argmax(1) == y).sum())
        n += len(y)
        tot += float(loss.detach()) * len(y)
        if (i + 1) % 50 == 0:
            print(i + 1, f"{time.time() - t0:.0f}s loss {tot / n:.3f} acc {right / n:.3f} of {n}", flush=True)
            right = n = 0
            tot = 0.0
        if (i + 1) % 100 == 0 or i + 1 == steps:
            torch.save({"visual": visual.state_dict(), "head": head.state_dict()}, out)
            visual.eval()
            with torch.no_grad():
                for name, kw in (("plain", {}), ("unseen", dict(line_style="sketch", background="grid"))):
                    s = f.held_out(200, 904_000)
                    ok = 0
                    for c, sd in s:
                        x = ip([draw(c, sd, **kw)], return_tensors="pt")
                        lg, _ = boxes_of(
                            [
                                (
                                    x["pixel_values"],
                                    x["image_grid_thw"],
                                    torch.ones(1, int(x["image_grid_thw"].prod()) // 4, dtype=torch.bool),
                                    torch.tensor([0]),
                                )
                            ]
                        )
                        ok += OF[vision.SUBJECTS[int(lg.argmax())]] == c
                    print("  val", name, ok / len(s), flush=True)
            visual.train()
