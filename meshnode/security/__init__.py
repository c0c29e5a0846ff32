"""Who belongs to a mesh, and what keeps everybody else out.

    keyfile        the mesh key file: text, 0600, several keys for rotation
    ring           the keys accepted now, and the keys derived from them (HKDF)
    seal           sealed datagrams (ChaCha20-Poly1305)          replay     each datagram counts once
    signing        signed membership claims (Ed25519)            certificates   the stricter mode: a CA, revocation
    doors          which CURVE key may connect, as which node    setup      all of it from a Config

Three proofs, each for another question:

    the mesh key       "may it speak here at all?"   Datagrams are sealed with it, joins first of all: who lacks it
                       gets no answer, to nothing. A record carries a tag made with it, so a key that is removed takes
                       with it those who never got another.
    the identity key   "is it the one it says?"   A node id is the hash of an Ed25519 key. Records are signed by their
                       subject, suspicion and death by the accuser; what is forged is refused and passed on by nobody.
    the CURVE key      "is this connection that node's?"   Made anew at each start, told in the signed record. All four
                       channels encrypt and authenticate both ends by it (CurveZMQ, RFC 26), with forward secrecy.

How a joiner gets its first connection. The others know its CURVE key only once they have its record, and gossip takes
a while. So before a node connects to a peer for the first time it knocks: it sends the peer its own signed record in a
sealed datagram. The peer takes it in as it would by gossip, and when the connection's handshake asks for the key, it is
known; if the datagram is late or lost, the handshake waits a moment for it (`channels.security`), and a further attempt
knocks again. This is safe because a knock says nothing that gossip couldn't: the seal proves the mesh key, the
signature the identity, and the key that is admitted stands in what was signed. Nothing is accepted "for the time
being", and a stranger does not even get to ask: CURVE needs the server's key, which only sealed records tell.

What it costs (`python -m benchmarks.encryption 2` on two shared cores; loopback, sealed / open): one call 1.45x the
p50, 256 in flight 0.87x the rate, bodies of 1 MiB 0.67x the rate, a new connection 2.3 ms instead of 0.5. A datagram
takes 4 us to seal and 7 to open, a forged one 29 to refuse; a claim 50 us to sign, 190 to check, once.

What is not promised. All holders of the mesh key can read all datagrams, and send what isn't signed under another's
name: pings and acks (so one can keep a dead member from being suspected), load (so one can draw work to a node, or
away from it), users' events, queries and their answers (so an event is no proof of who sent it: let it say "look",
and fetch what it is about by a call, whose sender is proven). They can't forge claims or connections. A node that the
CA revoked is out of all channels and of the table at once, but it holds the mesh key: until that is rotated it can
read gossip and send the unsigned. So against a member that turns: revoke, and rotate the key.

A packet that was recorded does nothing a second time in its mesh, and nothing in another. Over a restart of its
receiver that rests on the receiver's life being named in it (`replay`); a first contact names none and rests on
clocks: one that was opened just before a restart counts once more after it, if its sender's clock was further ahead
than the restart took. Two meshes that share a key file answer each other's join requests, with a refusal. A ping that
was recorded on its way to one node and is played to another gets that node's "not me", sealed. Clocks must agree
within a minute. Who joins, and how much is sent where, can be seen by who watches the network.
"""
