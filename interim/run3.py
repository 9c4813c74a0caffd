import sys, time, os, torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)
from tools.demo import build_demo as b

t = time.time()
what = sys.argv[1]
if what == "text":
    processor = b.build_processor()
    model = b.build_model(processor.tokenizer)
    state = torch.load("dense224b.pt")["visual"]
    model.model.visual.load_state_dict(state)
    model.save_pretrained(b.WORK / "text_base")
    processor.save_pretrained(b.WORK / "text_base")
b.run(what, b.WORK)
print(what, time.time() - t)
