"""The corpus: raw Russian and English text to clean, deduplicated, weighted documents and their report.

Arrow is told to take memory from the system before anything imports it: its own allocator keeps what was freed, a
third of all that a build holds, and is no faster here.
"""

import os

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
