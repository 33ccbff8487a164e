"""Ask `flowleap serve` for actions, without openpi-client: websockets, msgpack and numpy.

flowleap serve checkpoint=runs/pusht/export_nfe1
python examples/serve_client.py ws://127.0.0.1:8000
"""

import os
import sys
import time

import msgpack
import numpy as np
from websockets.sync.client import connect


def pack(array):
    parts = {b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}
    return {b"__ndarray__": True, **parts}


def unpack(value):
    array = b"__ndarray__" in value
    return np.frombuffer(value[b"data"], value[b"dtype"]).reshape(value[b"shape"]) if array else value


def move(action):
    """Here the robot executes an action [A]."""


key = os.environ.get("FLOWLEAP_API_KEY")
headers = {"Authorization": f"Api-Key {key}"} if key else None
with connect(sys.argv[1], compression=None, max_size=None, additional_headers=headers) as server:
    about = msgpack.unpackb(server.recv())
    print(f"{about['server']}, history={about['history']}, observations {about['observations']}")
    for chunk in range(3):
        # Here stand the robot's own: {name: array}.
        obs = {
            name: np.zeros(known["shape"], known["dtype"]) for name, known in about["observations"].items()
        }
        server.send(msgpack.packb({**obs, "reset": chunk == 0}, default=pack))
        reply = server.recv()
        if isinstance(reply, str):
            sys.exit(reply)
        actions = msgpack.unpackb(reply, object_hook=unpack)["actions"]
        for action in actions[: about["n_action_steps"]]:
            move(action)
            time.sleep(1 / (about["control_hz"] or 10))
        print(f"chunk {chunk}: actions {actions.shape}, the last executed one {action}")
