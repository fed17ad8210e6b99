"""A selection on disk: `selected.parquet`, `ledger.parquet` and `selection.json`, which is written last."""

import pyarrow as pa

SELECTION_FILE = "selection.json"
SELECTED_FILE = "selected.parquet"
LEDGER_FILE = "ledger.parquet"

# The rule every failed download fails; named so that the ledger explains those rows too.
DOWNLOADED_RULE = "downloaded"
# The reasons of rows that passed every rule and were cut by a share, a per-group cap, a mix of sources or a limit.
TOP_RULE = "top"
PER_GROUP_RULE = "per_group"
MIX_RULE = "mix"
LIMIT_RULE = "limit"

# One row per row of the pool, failed downloads included, in pool order.
LEDGER_SCHEMA = pa.schema([
    pa.field("uid", pa.string()),
    pa.field("url", pa.string()),
    pa.field("status", pa.string()),
    pa.field("kept", pa.bool_()),
    pa.field("first_failing_rule", pa.string()),  # null where kept
    pa.field("failing_rules", pa.list_(pa.string())),  # every rule the row fails, in rule order; empty where kept
    pa.field("weight", pa.float64()),  # null where not kept
])

# The kept rows in pool order; `shard` and `row` say where the image lies.
SELECTED_SCHEMA = pa.schema([
    pa.field("uid", pa.string()),
    pa.field("shard", pa.int32()),
    pa.field("row", pa.int32()),
    pa.field("weight", pa.float64()),
])
