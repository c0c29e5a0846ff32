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
tests.simulation.membership_report`, seed 1). Times in seconds; formula: epidemic, for 99.99 %; timeout: the shortest
suspicion, ours and memberlist's; traffic is what one node sends per second when nothing happens.

       N   loss   update known to 99.99 %   formula   death known to all   timeout (memberlist)   datagrams   bytes
      10    0 %                      0.27       1.6                  4.6            2.8    (4)         2.0     267
      10   25 %                      0.40       2.2                  5.5                               5.5     669
     100    0 %                      0.63       2.0                  8.4            6.8    (8)         2.0     268
     100   25 %                      0.77       2.6                  8.5                               5.8     698
    1000    0 %                      0.89       2.2                 12.6           10.8   (12)         2.0     304
    1000   25 %                      1.11       3.0                 12.6                               5.8     734

All join one seed at once: 50 nodes know each other after 1.3 s, 1000 after 7.7 s. With one node of 100 so short of CPU
that what arrives waits for 2 to 20 s (3 runs of two minutes), plain SWIM believed 129 times that a healthy node was
dead, with Lifeguard never. Fifty real nodes in one process (`python -m benchmarks.gossip`): 0.04 % of a core for each.
"""
