"""Settings for every test."""

from __future__ import annotations

import os

import hypothesis

# gcsfs looks when it is imported. With it, a bucket is first asked for its type by gRPC, which no
# emulator answers: a minute a bucket.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

# A deadline asserts a time, and machines differ.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")
