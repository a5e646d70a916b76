"""The peer of `bench/corpus.py`, run by it in an environment of its own: datatrove's stages for the same job.

    python bench/datatrove_pipeline.py INPUT.jsonl OUTPUT LANGUAGE LID_MODEL

Language id, its Gopher, C4 and FineWeb filters, e-mail masking, then MinHash in four steps (14 bands of 8), as its own
examples put them together; one task. Its filters drop much of a corpus of manuals, so duplicates are looked for among
all documents, or there would be nothing to do. Prints CPU seconds of each stage as JSON.
"""

import json
import sys
import time
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils import lid
from datatrove.utils.hashing import HashConfig
from datatrove.utils.logging import logger

STOP_WORDS = {"en": None, "ru": ["и", "в", "не", "на", "что", "с", "по", "как"]}
LANGUAGES = {"en": "eng", "ru": "rus"}


def main() -> None:
    source, output, language, model = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    logger.remove()
    lid.FT176LID.MODEL_URL = model
    name = LANGUAGES[language]
    config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8)
    reader = JsonlReader(str(source.parent), glob_pattern=source.name)
    clean = [
        reader,
        LanguageFilter([language], backend="ft176", label_only=False, language_threshold=0.5),
        GopherRepetitionFilter(language=name),
        GopherQualityFilter(language=name, stop_words=STOP_WORDS[language], min_stop_words=2),
        C4QualityFilter(filter_no_terminal_punct=False, language=name),
        FineWebQualityFilter(language=name),
        PIIFormatter(),
        JsonlWriter(str(output / "clean")),
    ]
    stages = {
        "clean": (clean, 1),
        "signatures": ([reader, MinhashDedupSignature(str(output / "sigs"), config, name)], 1),
        "buckets": ([MinhashDedupBuckets(str(output / "sigs"), str(output / "buckets"), config=config)], 14),
        "clusters": ([MinhashDedupCluster(str(output / "buckets"), str(output / "remove"), config)], 1),
        "select": (
            [
                reader,
                MinhashDedupFilter(str(output / "remove")),
                JsonlWriter(str(output / "documents")),
            ],
            1,
        ),
    }
    seconds = {}
    for stage, (pipeline, tasks) in stages.items():
        before = time.process_time()
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(output / "logs" / stage)).run()
        seconds[stage] = time.process_time() - before
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
