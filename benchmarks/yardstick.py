"""What people do today: a fresh process imports transformers, loads the same weights, produces one token.

`python -m benchmarks.yardstick DIRECTORY PROMPT` prints one JSON line; whoever starts it times the process
from its spawn to that line, as a user waits for it.
"""

from __future__ import annotations

import json
import sys
import time


def main(directory: str, prompt: str) -> None:
    began_s = time.perf_counter()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    imported_s = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    loaded_s = time.perf_counter()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        logits = model(**inputs, logits_to_keep=1).logits
    token = int(logits[0, -1].argmax())
    done_s = time.perf_counter()
    seconds = {
        "imports_s": imported_s - began_s,
        "load_s": loaded_s - imported_s,
        "first_token_s": done_s - loaded_s,
        "prompt_tokens": int(inputs["input_ids"].shape[1]),
        "token": token,
    }
    sys.stdout.write(json.dumps(seconds) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
