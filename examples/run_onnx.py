import json, sys
import numpy as np, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
inside = session.get_modelmeta().custom_metadata_map
classes, how = json.loads(inside["classes"]), json.loads(inside["preprocessing"])
picture = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
(w, h), (_, height, width) = picture.size, how["input_size"]
# before the middle is cut out
tall, wide = int(height / how["crop_pct"]), int(width / how["crop_pct"])
if tall == wide:  # the shorter side becomes that, the longer is cut to whole pixels
    w, h = (tall if a <= b else int(tall * a / b) for a, b in ((w, h), (h, w)))
else:  # the first side that fits becomes its own, the other is rounded
    ratio = min(h / tall, w / wide)
    w, h = max(1, round(w / ratio)), max(1, round(h / ratio))
picture = picture.resize((w, h), Image.Resampling[how["interpolation"].upper()])
left, top = round((w - width) / 2), round((h - height) / 2)
pixels = np.asarray(picture.crop((left, top, left + width, top + height)), np.float32) / 255
pixels = (pixels - np.float32(how["mean"])) / np.float32(how["std"])
(logits,) = session.run(None, {"pictures": pixels.transpose(2, 0, 1)[None]})
print(classes[int(logits.argmax())])
