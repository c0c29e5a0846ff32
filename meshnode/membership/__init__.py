"""Membership: who is in the mesh, by gossip.

swim          the core, and how the protocol works; start reading there
beliefs       claims: what is believed, refuted, passed on       probing     who answers
members       the table, and which claim wins                    suspicion   how long a suspect may refute
broadcasts    what goes into the next datagram                   health      doubt in oneself
messages      what travels                                       effects     what the core asks to be done
settings      profiles                                           authority   the seam for signatures
service       the core on sockets and the event loop: `Membership`
joining       the first contact                                  datagrams   UDP and its envelope
"""
