"""The script that somebody would write: trl, peft, one JSONL file, no queue.

    python -m benchmarks.worker.by_hand BASE DATA FOLDER STEPS BATCH RATE SEED THREADS

Writes FOLDER/adapter, and FOLDER/losses.json: [[step, loss], …].
"""

import json
import math
import sys
import warnings
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

WARMUP = 0.05


def main(base: str, data: str, folder: str, steps: int, batch: int, rate: float, seed: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = load_dataset("json", data_files=data, split="train", cache_dir=f"{folder}/cache")
    rows = rows.map(
        lambda row: {"prompt": row["messages"][:1], "completion": row["messages"][1:]},
        remove_columns=["messages"],
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=SFTConfig(
            output_dir=f"{folder}/trainer",
            seed=seed,
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=rate,
            lr_scheduler_type="linear",
            warmup_steps=math.ceil(WARMUP * steps),
            weight_decay=0.0,
            logging_steps=max(1, steps // 200),
            save_steps=max(10, math.ceil(steps / 20)),
            save_total_limit=1,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    trainer.save_model(f"{folder}/adapter")
    logged = [(one["step"], one["loss"]) for one in trainer.state.log_history if "loss" in one]
    Path(folder, "losses.json").write_text(json.dumps(logged))


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(int(sys.argv[8]))
    main(
        *sys.argv[1:4],
        steps=int(sys.argv[4]),
        batch=int(sys.argv[5]),
        rate=float(sys.argv[6]),
        seed=int(sys.argv[7]),
    )
