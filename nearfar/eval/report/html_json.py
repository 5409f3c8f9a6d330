"""JSON that is safe inside a script element."""

from __future__ import annotations

import json
from typing import Any


def script_json(value: Any) -> str:
    r"""JSON that cannot end the script element that holds it.

    Example:
        >>> script_json("</script>")
        '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
