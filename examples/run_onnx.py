import json, sys
import numpy as np, onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1])
inside = session.get_modelmeta().custom_metadata_map
classes, how = json.loads(inside["classes"]), json.loads(inside["preprocessing"])
_, height, width = how["input_size"]
picture = Image.open(sys.argv[2]).convert("RGB")
side = int(height / how["crop_pct"])  # the shorter side, before the middle is cut out
w, h = (side if a <= b else int(side * a / b) for a, b in (picture.size, picture.size[::-1]))
picture = picture.resize((w, h), Image.Resampling[how["interpolation"].upper()])
left, top = round((w - width) / 2), round((h - height) / 2)
pixels = np.asarray(picture.crop((left, top, left + width, top + height)), np.float32) / 255
pixels = (pixels - np.float32(how["mean"])) / np.float32(how["std"])
(logits,) = session.run(None, {"pictures": pixels.transpose(2, 0, 1)[None]})
print(classes[int(logits.argmax())])
