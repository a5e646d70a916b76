"""How well the quality classifier tells texts apart, on documents it has not seen and on sources it has not seen.

    python bench/classifier.py TEXTS.jsonl.zst --good GENRE ... [--leave-out GOOD RANDOM] [--json FILE]

TEXTS are JSON lines with `text`, `genre` and `source`. Documents of the genres named are the good ones, all others
stand for random pages. With `--leave-out` a good and a random source are kept out of the teaching, and judged at
the end.
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from measure import report
from yalm.corpus.classifier import roc_auc, train
from yalm.corpus.rules.quality import QualityModel
from yalm.tokens.documents import find_files, read_raw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, metavar="TEXTS")
    parser.add_argument("--good", nargs="+", required=True, metavar="GENRE")
    parser.add_argument("--leave-out", nargs=2, default=(), metavar="SOURCE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    documents = [json.loads(raw.data) for file in find_files([options.texts]) for raw in read_raw(file)]
    taught = [document for document in documents if document["source"] not in options.leave_out]
    with TemporaryDirectory() as folder:
        paths = {kind: Path(folder, f"{kind}.jsonl") for kind in ("good", "random")}
        streams = {kind: path.open("w") for kind, path in paths.items()}
        for document in taught:
            kind = "good" if document["genre"] in options.good else "random"
            streams[kind].write(json.dumps({"text": document["text"]}) + "\n")
        for stream in streams.values():
            stream.close()
        start = time.process_time()
        found = train([paths["good"]], [paths["random"]], Path(folder, "model.safetensors"))
        seconds = time.process_time() - start
        model = QualityModel.load(Path(folder, "model.safetensors"))
    texts = pa.array([document["text"] for document in documents], pa.large_string())
    start = time.process_time()
    probabilities = np.concatenate([model.probabilities(texts[i : i + 500]) for i in range(0, len(texts), 500)])
    rate = sum(len(document["text"].encode()) for document in documents) / 1e6 / (time.process_time() - start)
    rows: list[dict[str, Any]] = [
        {
            "judged": "held-out documents",
            "documents": sum(found.test),
            "ROC-AUC": round(found.auc, 4),
            "calibration error": round(found.calibration_error, 3),
            **{
                f"kept at {cut.threshold:g}, good/random": f"{cut.good_kept:.1%} / {cut.random_kept:.1%}"
                for cut in found.cuts
                if cut.threshold in (0.2, 0.5, 0.8)
            },
        }
    ]
    if options.leave_out:
        sources = np.array([document["source"] for document in documents])
        unseen = np.isin(sources, options.leave_out)
        good = sources[unseen] == options.leave_out[0]
        auc = roc_auc(probabilities[unseen], good)
        rows.append({"judged": " / ".join(options.leave_out), "documents": int(unseen.sum()), "ROC-AUC": round(auc, 4)})
    report("quality classifier", rows, options.json, taught=f"{seconds:.1f} CPU-s", scoring=f"{rate:.0f} MB/CPU-s")


if __name__ == "__main__":
    main()
