"""Membership: who is in the mesh, by gossip.

    swim          the core, and how the protocol works; start reading there
    beliefs       claims: what is believed, refuted, passed on       probing     who answers
    members       the table, and which claim wins                    suspicion   how long a suspect may refute
    broadcasts    what goes into the next datagram                   health      doubt in oneself
    messages      what travels                                       effects     what the core asks to be done
    settings      profiles                                           authority   the seam for signatures
    service       the core on sockets and the event loop: `Membership`
    joining       the first contact                                  events      users' events and queries
    datagrams     UDP, and the seam for sealing                      streams     the same over TCP
    peers_file    known peers, for a restart

What to expect of it, LAN profile, from the production core under a virtual clock. Times are seconds. formula: the
epidemic's time until 99.99 % know. memberlist: the same by its figures. Datagrams and bytes are what one node sends per
second when nothing happens, state exchanges included.

       N   loss   update known to 50 %   99 %   all   formula   death known to all   memberlist   datagrams   bytes
      10    0 %                   0.20   0.36  0.36       1.6                  4.0          8.2         2.0     257
      10    5 %                   0.25   0.40  0.40       1.8                  4.1          8.2         3.1     376
      10   25 %                   0.21   0.35  0.35       2.2                  5.8          8.2         5.7     681
     100    0 %                   0.45   0.70  0.75       2.0                 10.0         12.6         2.0     258
     100    5 %                   0.41   0.68  0.71       2.0                 9.7         12.6         3.1     376
     100   25 %                   0.46   0.80  0.98       2.6                  8.6         12.6         5.8     688
    1000    0 %                   0.60   0.86  1.02       2.2                 14.4         16.8         2.0     260
    1000    5 %                   0.51   0.78  0.94       2.4                 14.4         16.8         3.0     378
    1000   25 %                   0.55   0.88  1.34       3.0                 13.5         16.8         5.8     690

Not one healthy node was believed dead in any of these. docs/membership.md has the whole table: one-way links, nodes
starved of CPU, plain SWIM beside it, storms of joins and restarts, and how it was measured.

Idle, gossip takes 0.04 % of a core for each of fifty real nodes in one process (`python -m benchmarks.gossip`); a whole
node 0.26 % (twenty in one process: channels, Raft and gossip). Data links are made when there is something to say and
closed after a minute without use: an idle node holds Raft's, one to whom it follows, and a few of late exchanges.
"""
