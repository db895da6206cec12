"""What one round of fine-tuning costs beside the training itself, ours against its peers.

One round: 12 workers each get a model of 10 million fp32 parameters (40 MB) and give an update of the same
size back, the server averages; nobody trains. `python -m benchmarks.round_overhead [--quick] --json FILE`
measures wall time, CPU seconds, bytes on the wire and the server's memory of this project's own path (worker
pool, links, frames, engine, aggregation), plain and with mutual TLS, of Flower (plain, TLS), of raw Ray
actors, of a 12-rank gloo all-reduce of one flat tensor, the floor, and of bare stars: a server and workers
that move the same bytes, plain and with TLS, and do nothing else (`peers/star.py`). Everything runs in a
network namespace that has nothing but `lo`; the arms take turns; peers live in virtual environments of their
own.

The link knows no plain mode: this benchmark hands it connected sockets that are not encrypted (`plain`),
through the doors by which the product hands it TLS contexts. Nothing in the product can be set to do so.
"""
