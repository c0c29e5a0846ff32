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

What to expect of it, LAN profile, from the production core under a virtual clock (`python -m
tests.simulation.membership_report`, seed 1). Times are seconds. formula: the epidemic's time until 99.99 % know,
ceil((ln(N + 1) + ln 9999) / (0.5 * fan-out * (1 - loss))) rounds of 200 ms. timeout: the shortest suspicion, and
memberlist's.
Datagrams and bytes are what one node sends per second when nothing happens, state exchanges included.

       N   loss   update known to 50 %   99 %   99.99 %   formula   death known to all   timeout   datagrams   bytes
      10    0 %                   0.14   0.27      0.27       1.6                  4.6   2.8  (4)         2.0     268
      10    5 %                   0.15   0.27      0.27       1.8                  5.9                    3.3     415
      10   25 %                   0.10   0.40      0.40       2.2                  5.5                    5.5     669
     100    0 %                   0.37   0.62      0.63       2.0                  8.4   6.8  (8)         2.0     269
     100    5 %                   0.23   0.58      0.70       2.0                  8.5                    3.0     376
     100   25 %                   0.38   0.60      0.77       2.6                  8.5                    5.8     698
    1000    0 %                   0.45   0.68      0.89       2.2                 12.6  10.8 (12)         2.0     305
    1000    5 %                   0.47   0.71      0.79       2.4                 12.8                    3.1     428
    1000   25 %                   0.64   0.93      1.11       3.0                 12.6                    5.8     735

Not one healthy node was believed dead in any of these. All join one seed at once: 50 nodes know each other after 1.3 s,
1000 after 7.7 s. With one node of 100 so short of CPU that what arrives waits for 2 to 20 s, plain SWIM believed 33
times in two minutes that a healthy node was dead, with Lifeguard never.

Idle, gossip takes 0.04 % of a core for each of fifty real nodes in one process (`python -m benchmarks.gossip`); a whole
node 0.26 % (twenty in one process: channels, Raft and gossip). Data links are made when there is something to say and
closed after a minute without use: an idle node holds Raft's, one to whom it follows, and a few of late exchanges.
"""
