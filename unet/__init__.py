"""Arrays in, class maps out: networks, their weights, and the device. Knows no file format but safetensors."""
