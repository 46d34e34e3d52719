"""Schemathesis: whatever the OpenAPI document allows or forbids, no 5xx, and answers as they are described."""

import subprocess
import sys

url = sys.argv[1]
SKIPPED = (
    "positive_data_acceptance",  # schemas do not say what spans two fields, or depends on the model
    "unsupported_method",  # it takes HEAD for one; tests/api has the real list
    "missing_required_header",
    "ignored_auth",  # the matrix tries every route without a key
    "use_after_free",
    "ensure_resource_availability",
)
done = subprocess.run(
    [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--phases", "fuzzing"),
        *("--max-examples", "25", "--generation-deterministic", "--workers", "1"),
        *("--suppress-health-check", "too_slow"),  # that is the machine's
        *("--checks", "all", "--exclude-checks", ",".join(SKIPPED)),
    ],
    capture_output=True,
    text=True,
    check=False,
)
print(done.stdout[-6000:])
assert done.returncode == 0, done.stderr[-3000:]
print("done")
