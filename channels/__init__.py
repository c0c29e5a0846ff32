"""Transport: four ZeroMQ channels between nodes, one envelope, and an in-memory twin.

    from channels.zeromq import open_channels
    node = await open_channels("node-a", handler=lambda incoming: incoming.body)
    node.set_peer("node-b", {"inference": "tcp://host-b:7701", ...})
    reply = await node["inference"].request("node-b", "echo", b"hello")

What each channel promises is declared in `channels.spec`:

| channel      | port | for                        | what is lost                        | order                |
|--------------|------|----------------------------|-------------------------------------|----------------------|
| inference    | +1   | requests, streams, bulk    | nothing silently: a reply or error  | parts of a stream    |
| coordination | +2   | what must arrive           | nothing until its deadline          | first in, first out  |
| telemetry    | +3   | much that may be lost      | the oldest that waits, counted      | per sender and topic |
| real_time    | +4   | what matters now or never  | all but the newest of a key, stale  | per sender           |

Not promised: delivery once only across a restart of the receiving process (coordination delivers what was not
acknowledged to its successor); that a request failed by `Unreachable` after it had left was not carried out; order
between channels. A node does not receive what it publishes itself.

The way of a request, module by module: `router` makes a struct and a future, `outbox` packs the tick's messages for a
peer, `codec` encodes them in C, a `wire` (`zmq_wire`, or `memory` with seeded faults) carries the packet, the peer's
`inbox` decodes it and calls the handler, `service` runs what the handler started, and the reply comes back the same
way. `peers` opens and closes links, `links` says what follows from that, `sweep` keeps time; `coordination`, `backlog`,
`chunks`, `streams` and `topics` are what makes the channels differ; `priority` says which thread goes first;
`security` keeps the door, and `local` does the same to worker processes.

The wire, for who wants to write another implementation
=======================================================

**Connections.** Each channel is a ROUTER bound to its own TCP port (ZMTP 3.1, NULL or CURVE). Connect a ROUTER or
DEALER to it whose routing id is the MessagePack array

    [version = 1, own node id, node id of the peer that is meant, 8 random bytes]

The random bytes are new for every connection. Under CURVE the node id must be the one the client's key belongs to. A
connection whose id is malformed, or means another node, is closed. One connection serves both directions: what the
bound side has for a peer goes over the connection that peer opened, unless it has opened one itself. A peer that is
not introduced may connect and ask.

**Packets.** One ZeroMQ message is one packet: a frame with the MessagePack array

    [version = 1, session, sent_at, [message, ...]]

and, if its first message is a Chunk, a second frame with the chunk's bytes. `session` is a random positive integer
below 2**63, drawn when the process starts: another session from the same node id means it has restarted. `sent_at` is
the sender's wall clock in seconds (a float). Frames are limited to twice the largest of the channel's packet, chunk and
unchunked body size plus 64 KiB; larger ones cut the connection. The first packet after connecting may be empty, and
should be sent at once: until then the bound side does not know who is there.

**Messages** are arrays; the first element is the kind. Fields may be appended by later versions: skip what you do not
know, take the default for what is missing (`?`). Bodies are `bin`. A fault is `[code, message, retry_after_s?]`.

     1 Request   [1, id, command, args, timestamp, deadline, stream? = false, context? = nil]
     2 Response  [2, id, success, result: bin if success, else a fault]
     3 Part      [3, id, index from 0, body]           of a streamed reply
     4 End       [4, id, number of parts, fault? = nil]
     5 Cancel    [5, id]                               nobody waits any more
     6 Credit    [6, id, parts]                        the reader of a stream takes so many parts more
     7 Event     [7, command, args, timestamp, deadline, sequence? = 0, key? = ""]
     8 Publish   [8, topic, sequence from 1, body, timestamp, deadline, key? = ""]
     9 Subscribe [9, {prefix: replay}]                 all that is subscribed to; told again every few seconds
    10 Ack       [10, session, sequence]               all of that session up to here has been delivered
    11 Chunk     [11, transfer, index from 0, size of the whole]
    12 ChunkAck  [12, transfer, index, fault? = nil]
    13 Window    [13, in_flight]                       so many requests may be outstanding here
    14 Goodbye   [14, fault]                           a packet was not understood
    15 Whole     [15, transfer, chunks, message]       a message of kind 1, 2, 3 or 7 whose body was sent in chunks
    16 Reliable  [16, sequence, first, message]        a message of kind 1 to 8 under acknowledged delivery

**Time.** The receiver never reads a sender's clock as its own. It keeps the least (own monotonic clock - sent_at) seen
in a session, and adds it to a deadline: the time that was left when the packet went, less what it lost on the way
beyond the fastest packet. Requests, events and publications past their deadline are dropped.

**Requests.** `id` is unique per sending process. Answer with one Response, or, if `stream`, with Parts and one End.
A reader starts with credit for 32 parts. A sender keeps at most 1024 requests outstanding (or as Window says).

**Chunks** (inference only). A body over 32 KiB goes as chunks of 1 MiB, each in a packet of its own, the bytes of a few
(2, over long round trips up to 16; a small one counts as a quarter) without ChunkAck per connection and direction.
Whole follows the last chunk, in its packet or a later one; with 0 chunks it gives the transfer up. Chunks are
acknowledged in the order they came. A ChunkAck with a fault refuses the transfer.

**Acknowledged delivery** (coordination only). Messages of kind 1 to 8 travel inside Reliable, but for Events of a
protocol that repeats what matters by itself. `sequence` counts from 1 or more per session and receiver, `first` is the
lowest that is still unacknowledged. Deliver in order, each once; start a new session at its `first`; when `first`
exceeds what you wait for, go on from there. Answer every packet that held a Reliable by one Ack: at once, or, if it
held only Requests and Responses, with the next packet, within 25 ms. Send again what is not acknowledged: all of it on
a new connection, the oldest 64 after 0.2 s, then after twice that and so on up to 2 s.

**Topics.** A prefix covers a topic if it is equal to it, empty, ends in "." or "/", or is followed by one of these in
the topic. A subscriber drops what has a sequence it has passed, and counts gaps.

Golden bytes of every message are in `tests/channels/test_envelope.py`; a JSON codec that passes the same suite shows
that MessagePack is a choice.
"""

__meshnode__ = True
