"""Loose objects with s3fs and with obstore: `python tests/benchmarks/s3_clients.py s3://bucket/prefix`.

Writes and reads objects of random bytes with `S3Storage`, alternately with and without obstore, with as many threads as
a worker has. Results are medians over rounds. CPU time is that of this process. The objects are not deleted.
"""

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from maskfleet.jobs.storage.schemes import open_storage

THREADS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--bytes", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    stores = {"s3fs": open_storage(given.url), "obstore": open_storage(given.url)}
    stores["s3fs"]._obstore_is_open = True  # disables obstore
    names = [f"object-{number:06}" for number in range(given.objects)]
    data = {name: os.urandom(given.bytes) for name in names}
    rates: dict[tuple[str, str], list[float]] = {}
    cpu: dict[tuple[str, str], list[float]] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for store in stores.values():
            store.write(names[0], data[names[0]])
        assert stores["obstore"]._obstore is not None, "obstore is not in use; install the extra `fast`"
        for number in range(given.rounds):
            for name in list(stores) if number % 2 else reversed(stores):
                for verb, work in (("PUT", stores[name].write), ("GET", stores[name].read)):
                    arguments = (names, data.values()) if verb == "PUT" else (names,)
                    started, began = time.process_time(), time.perf_counter()
                    found = list(pool.map(work, *arguments))
                    rates.setdefault((verb, name), []).append(given.objects / (time.perf_counter() - began))
                    cpu.setdefault((verb, name), []).append((time.process_time() - started) / given.objects * 1000)
                    assert verb == "PUT" or found == list(data.values())
    print("| | client | requests/s | CPU ms per request |\n|---|---|---|---|")
    for verb, name in sorted(rates):
        print(f"| {verb} | {name} | {np.median(rates[verb, name]):.0f} | {np.median(cpu[verb, name]):.3f} |")


if __name__ == "__main__":
    main()
