# What nbdsh says to the server of the export "name" at URI, whose content is in the file "disk": the handshake, random
# requests against a model, many at a time, and what must fail. It says "good" at the end.
import random

rng = random.Random(SEED)
model = bytearray(open("disk", "rb").read())
size = len(model)


def refused(codes, what, *arguments):
    try:
        what(*arguments)
    except nbd.Error as error:
        assert error.errno in codes.split(), (error.errno, codes)
        return
    raise AssertionError(f"{what} was not refused")


def handshake():
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(URI)
    exports, contexts = [], []
    h.opt_list(lambda name, text: exports.append((name, text)) or 0)
    assert exports == [("name", "words")], exports
    h.set_export_name("other")
    refused("ENOENT", h.opt_info)
    h.set_export_name("name")
    h.opt_list_meta_context(lambda context: contexts.append(context) or 0)
    assert contexts == [nbd.CONTEXT_BASE_ALLOCATION], contexts
    h.opt_info()
    assert h.get_size() == size
    h.opt_go()
    assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    return h


def read(h, at, n):
    """Reads in chunks, which must be all of the range and nothing twice."""
    found, missing = bytearray(n), set(range(at, at + n))
    chunks = 0

    def chunk(data, offset, status, error):
        nonlocal chunks
        chunks += 1
        assert status in (nbd.READ_DATA, nbd.READ_HOLE)
        places = range(offset, offset + len(data))
        assert missing.issuperset(places)
        missing.difference_update(places)
        found[offset - at : offset - at + len(data)] = data
        return 0

    one = rng.random() < 0.5
    h.pread_structured(n, at, chunk, nbd.CMD_FLAG_DF if one else 0)
    assert not missing and (chunks == 1 or not one)
    return found


def status(h, at, n):
    """What is told to be zeros is."""

    def extents(context, offset, entries, error):
        for length, flags in zip(entries[::2], entries[1::2]):
            end = min(offset + length, size)
            assert not flags & nbd.STATE_ZERO or not any(model[offset:end])
            offset = end
        return 0

    h.block_status(n, at, extents)


def step(h):
    n = rng.randint(1, 100_000)
    at = rng.randint(0, size - n)
    fua = rng.choice([0, nbd.CMD_FLAG_FUA])
    what = rng.randrange(8)
    if what == 0:
        data = rng.randbytes(n)
        h.pwrite(data, at, fua)
        model[at : at + n] = data
    elif what == 1:
        h.zero(n, at, fua | rng.choice([0, nbd.CMD_FLAG_NO_HOLE]))
        model[at : at + n] = bytes(n)
    elif what == 2:
        h.trim(n, at, fua)
        # Whatever is there now.
        model[at : at + n] = h.pread(n, at)
    elif what == 3:
        h.cache(n, at)
        h.flush()
    elif what == 4:
        status(h, at, n)
    elif what == 5:
        assert read(h, at, n) == model[at : at + n]
    else:
        assert h.pread(n, at) == model[at : at + n]


def many(h):
    part = size // 64
    sent = [(nbd.Buffer(part), number * part) for number in range(64)]
    waiting = {h.aio_pread(buffer, at): (buffer, at) for buffer, at in sent}
    while waiting:
        done = [cookie for cookie in waiting if h.aio_command_completed(cookie)]
        for buffer, at in map(waiting.pop, done):
            assert buffer.to_bytearray() == model[at : at + part]
        if waiting and not done:
            h.poll(-1)


def nonsense(h):
    h.set_strict_mode(0)
    refused("EINVAL", h.pread, 512, size)
    # The latter is QEMU's.
    refused("ENOSPC EINVAL", h.pwrite, b"1" * 512, size)
    refused("ENOSPC EINVAL", h.zero, 512, size)
    refused("EINVAL", h.trim, 512, size)
    refused("EINVAL", h.pread, 512, 0, nbd.CMD_FLAG_NO_HOLE)
    assert h.pread(size, 0) == model


h = handshake()
assert h.get_structured_replies_negotiated()
for _ in range(200):
    step(h)
many(h)
nonsense(h)
# Who wants no chunks gets none.
plain = nbd.NBD()
plain.set_request_structured_replies(False)
plain.connect_uri(URI)
assert not plain.get_structured_replies_negotiated()
assert plain.can_multi_conn()
many(plain)
assert plain.pread(size, 0) == model
h.flush()
h.shutdown()
plain.shutdown()
assert open("disk", "rb").read() == model
print("good")
