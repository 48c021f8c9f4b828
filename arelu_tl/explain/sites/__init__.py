"""``inspect``: the sites of an architecture, the plan of surgery, and the survey of timm."""
