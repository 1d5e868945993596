"""Generate with a local model folder, or a checkpoint of it: `python examples/load_a_model.py FOLDER`."""

import sys

import transformers

from native_loader import load_state_dict as load_file  # was: from safetensors.torch import load_file

folder = sys.argv[1]
config = transformers.AutoConfig.from_pretrained(folder)
model_class = getattr(transformers, config.architectures[0])
model = model_class.from_pretrained(None, config=config, state_dict=load_file(folder))
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
inputs = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]))
