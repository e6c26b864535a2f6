------------------------------- MODULE Delivery -------------------------------
(* One partition of an inbox, its journal partition, the group's commit, the workers that own the    *)
(* partition one after the other, the person who redrives or discards, and whoever receives outputs. *)
(*                                                                                                    *)
(* For who reads TLA+ for the first time: a state gives a value to each of the VARIABLES; each action *)
(* below is one thing that can happen (x is a variable before it, x' after it); TLC tries every order *)
(* of them and checks every invariant in every state.                                                 *)
(*                                                                                                    *)
(* Worker n is the n-th to whom the group gives the partition, which it does at any time. An earlier  *)
(* one is never told. If it acts no more, it crashed; if it acts on, it is a zombie.                  *)
(*                                                                                                    *)
(* To keep the state space small: a worker commits at most once, as nobody sees any commit but its    *)
(* last, and only if another worker comes after it; what the owner could commit is checked in every   *)
(* state. An assignment happens together with the new owner's claim.                                  *)
EXTENDS Naturals, Sequences, FiniteSets

CONSTANTS
  Inbox,    \* what Kafka delivers: a sequence of [id, conv, many]; many: its handler sends several outputs
  Poison,   \* ids whose handler fails until somebody redrives them
  Workers,  \* so many times the partition is assigned
  Claims,   \* so many claims there are before only the owner claims again
  Redrives, Discards,   \* so many commands people give
  Parks,    \* so often one message is parked
  Copies, Sents,        \* so many copies, and records that say "sent", are written
  Room,     \* so many offsets, finished above the committed one, fit into a commit's metadata
  Gaps,     \* whether a record can fail to reach the journal though one behind it does
  Bug       \* "" or the name of a seeded bug

M(id, conv, many) == [id |-> id, conv |-> conv, many |-> many]
(* Inboxes for the configurations; an id that comes twice is a producer's duplicate. *)
Plain   == << M("x", "A", TRUE), M("y", "B", FALSE), M("z", "A", FALSE) >>
Twins   == << M("y", "B", FALSE), M("x", "A", TRUE), M("x", "A", TRUE) >>
Behind  == << M("p", "A", FALSE), M("x", "A", FALSE) >>
Queue   == << M("p", "A", FALSE), M("x", "A", FALSE), M("z", "A", FALSE) >>
Apart   == << M("y", "B", FALSE), M("p", "A", FALSE) >>
Solo    == << M("x", "A", TRUE) >>
Mixed   == << M("y", "B", FALSE), M("x", "A", TRUE) >>
Single  == << M("p", "A", FALSE) >>
Pair    == << M("x", "A", TRUE), M("y", "B", TRUE) >>

Off == 1..Len(Inbox)
Ids == {Inbox[o].id : o \in Off}
Worker == 1..Workers
Max(S) == IF S = {} THEN 0 ELSE CHOOSE x \in S : \A y \in S : y <= x
Min(S) == CHOOSE x \in S : \A y \in S : x <= y
Earlier(o) == {q \in Off : q < o /\ Inbox[q].conv = Inbox[o].conv}
Later(o) == {q \in Off : q > o /\ Inbox[q].conv = Inbox[o].conv}

VARIABLES
  log,      \* the journal: [kind, claim (of its writer), by, o (inbox offset), state, refers, ok]; ok: it counts
  truth,    \* what one believes who reads all of the journal
  heir,     \* what one believes who reads it from the place that the last commit names
  group,    \* what the group keeps: owner, and of the last commit: by (its worker), w (all offsets up to it are
            \* finished), m (and these), low and claim (the journal note)
  worker,   \* of each worker, see Fresh
  out,      \* outputs that took effect, as <<id, who computed it>>: the first of each id
  odd       \* history: "late": a message ran after a later one of its conversation; "again": after its end
vars == <<log, truth, heir, group, worker, out, odd>>

J == Len(log)
Covered(g) == (1..g.w) \cup g.m

-------------------------------------------------------------------------------
(* The fold. What a reader believes of an inbox offset: its state, the place in the journal where its *)
(* payload is (of "done": its outputs), and which park it is in.                                      *)
Open == {"parked", "held", "redriven", "discarded"}
Unknown == [st |-> "none", at |-> 0, park |-> 0]
Entry(st, at, park) == [st |-> st, at |-> at, park |-> park]
NoView(claim) == [claim |-> claim, e |-> [o \in Off |-> Unknown]]

Commands == {"redrive", "discard"}
Valid(v, r) == r.kind \in Commands \/ r.claim >= v.claim \/ Bug = "claims-ignored"

Fold1(v, r, at) ==
  LET e == v.e[r.o] put(x) == [v EXCEPT !.e[r.o] = x]
  IN IF r.kind = "claim" THEN [v EXCEPT !.claim = at]
     ELSE IF ~Valid(v, r) THEN v
     ELSE CASE r.kind = "redrive" \/ r.kind = "discard" ->
                 IF e.st = "parked" /\ (e.park = r.refers \/ Bug = "any-park")
                 THEN put([e EXCEPT !.st = IF r.kind = "redrive" THEN "redriven" ELSE "discarded"]) ELSE v
            [] r.kind = "park" -> put(Entry("parked", at, at))
            [] r.kind = "held" -> put(Entry("held", at, 0))
            [] r.kind = "done" -> put(Entry("done", at, 0))
            \* An end is remembered: its offset may be delivered again, if the commit's metadata had no room for it.
            [] r.kind = "drop" -> put(IF Bug = "end-forgotten" THEN Unknown ELSE Entry("over", at, 0))
            \* Where reading began behind the original, the copy is all there is.
            [] r.kind = "copy" -> IF e.st \in {"none", r.state} \/ Bug = "copy-unseen"
                                  THEN put(Entry(r.state, at, r.refers)) ELSE v
            [] r.kind = "sent" -> [v EXCEPT !.e = [o \in Off |->
                                     IF v.e[o].st # "done" \/ v.e[o].at >= r.refers THEN v.e[o]
                                     ELSE IF Bug = "end-forgotten" THEN Unknown
                                     ELSE [v.e[o] EXCEPT !.st = "over"]]]

RECURSIVE Fold(_, _, _)
Fold(v, from, to) == IF from > to THEN v ELSE Fold(Fold1(v, log[from], from), from + 1, to)
Put(r) == LET x == [r EXCEPT !.ok = r.kind = "claim" \/ Valid(truth, r)] IN
  log' = Append(log, x) /\ truth' = Fold1(truth, x, J + 1) /\ heir' = Fold1(heir, x, J + 1)

-------------------------------------------------------------------------------
(* A worker. claim: place of its claim, 0: it has none. at: it has read the journal up to here. view:  *)
(* what it believes. fin: what its commit gate counts as finished. note: low and claim to start from.  *)
(* lane, of an offset: "idle"; "opening" or "closing": its park or held, or its done or drop, is on    *)
(* its way; "lost": it was, and will never come; "sent": its completion's outputs are acknowledged.    *)
(* given: what the commit that it started from covered, so that it is not delivered again.             *)
Fresh(g) == [claim |-> 0, at |-> 0, view |-> NoView(0), fin |-> Covered(g), given |-> Covered(g),
             lane |-> [o \in Off |-> "idle"], note |-> [low |-> g.low, claim |-> g.claim]]

Gone == Fresh([w |-> 0, m |-> {}, low |-> 1, claim |-> 0])

Settled(i, o) == LET st == worker[i].view.e[o].st IN
  \/ o \in worker[i].fin /\ st \in {"none", "over"} /\ worker[i].lane[o] = "idle"
  \/ st = "done" /\ worker[i].lane[o] = "sent"
Arrived(i, o) == o \notin worker[i].fin /\ worker[i].view.e[o].st = "none" /\ worker[i].lane[o] = "idle"
(* Its turn in its conversation. An arrival knows of all before it, and so does a message of the       *)
(* journal that is delivered again, for which it waits. Others know only of what is in the journal.    *)
Turn(i, o) == \A q \in Earlier(o) :
  \/ Settled(i, q)
  \/ /\ worker[i].view.e[o].st # "none" /\ (o \in worker[i].given \/ Bug = "hasty")
     /\ worker[i].view.e[q].st = "none" /\ worker[i].lane[q] = "idle"

(* Dedup: another offset with its id is finished, and neither parked nor held. *)
Twin(i, o) == /\ Bug # "dedup-off"
              /\ \E q \in Off \ {o} : Inbox[q].id = Inbox[o].id /\ Settled(i, q)

(* A view that was read changes lanes and gate: what was on its way has come. *)
Learn(x, v, at) == [x EXCEPT !.view = v, !.at = at,
   !.fin = @ \cup {o \in Off : v.e[o].st \in Open \cup {"over"}},
   !.lane = [o \in Off |-> IF x.lane[o] \in {"opening", "closing"} \/ v.e[o].st = "over" THEN "idle" ELSE x.lane[o]]]
Record(i, kind, o, state, refers) ==
  [kind |-> kind, claim |-> worker[i].claim, by |-> i, o |-> o, state |-> state, refers |-> refers, ok |-> FALSE]
Count(kinds) == Cardinality({j \in 1..J : log[j].kind \in kinds})

Init == /\ log = <<>> /\ truth = NoView(0) /\ heir = NoView(0) /\ out = <<>> /\ odd = {}
        /\ group = [owner |-> 1, by |-> 0, w |-> 0, m |-> {}, low |-> 1, claim |-> 0]
        /\ worker = [i \in Worker |-> Fresh(group)]

(* Append a claim and read from the note up to it. It may come late, behind a newer worker's: that    *)
(* one, and even a zombie that still takes itself for the owner, then claims again and rebuilds.       *)
Claim(i) == LET x == IF i > group.owner THEN Fresh(group) ELSE worker[i] IN
  /\ i <= group.owner + 1 /\ x.claim = 0
  /\ i >= group.owner \/ Count({"claim"}) < Claims
  /\ group' = [group EXCEPT !.owner = Max({i, @})]
  /\ Put([Record(i, "claim", 1, "", 0) EXCEPT !.claim = 0])
  /\ worker' = [worker EXCEPT ![i] =
       [Learn(x, [Fold(NoView(x.note.claim), x.note.low, J) EXCEPT !.claim = J + 1], J + 1) EXCEPT !.claim = J + 1]]
  /\ UNCHANGED <<out, odd>>

(* Read to the end. One that meets a newer claim forgets what it has in flight. *)
Read(i) == LET x == worker[i] v == Fold(x.view, x.at + 1, J) IN
  /\ x.claim # 0 /\ x.at < J
  /\ worker' = [worker EXCEPT ![i] =
       IF Bug = "no-read-back"      \* it believes itself; of others it hears only commands
       THEN [x EXCEPT !.at = J, !.view.e = [o \in Off |->
               IF x.view.e[o].st = "parked" /\ v.e[o].st \in {"redriven", "discarded"} THEN v.e[o] ELSE x.view.e[o]]]
       ELSE IF v.claim # x.claim
       THEN IF i < group.owner /\ Count({"claim"}) >= Claims THEN Gone
            ELSE [Gone EXCEPT !.fin = x.fin, !.given = x.given, !.note = x.note]
       ELSE Learn(x, v, J)]
  /\ UNCHANGED <<log, truth, heir, group, out, odd>>

(* A record counts for its writer when it has read it back, no newer claim before it. *)
Write(i, r, lane) ==
  /\ Put(r)
  /\ worker' = [worker EXCEPT ![i] =
       IF Bug = "no-read-back" THEN Learn(@, Fold1([@.view EXCEPT !.claim = r.claim], r, J + 1), @.at)
       ELSE [@ EXCEPT !.lane[r.o] = lane]]
  /\ UNCHANGED <<group, out>>

(* Whether it is up to worker i now to begin with o; and whether the handler succeeds. *)
Ready(i, o) == LET st == worker[i].view.e[o].st IN
  /\ worker[i].claim # 0 /\ worker[i].lane[o] = "idle" /\ Turn(i, o)
  /\ Arrived(i, o) \/ st \in {"held", "redriven"}
Runs(i, o) == LET st == worker[i].view.e[o].st IN
  Ready(i, o) /\ (Twin(i, o) => st = "redriven") /\ (Inbox[o].id \in Poison => st = "redriven")
(* What was parked or held, or sends several outputs, is completed in the journal first. *)
ByJournal(i, o) == Inbox[o].many \/ (worker[i].view.e[o].st \in Open /\ Bug # "held-unrecorded")
Oddity(i, o) ==
  LET counts == worker[i].claim = truth.claim IN
  odd' = odd \cup (IF counts /\ \E q \in Later(o) : Settled(i, q) THEN {"late"} ELSE {})
             \cup (IF counts /\ truth.e[o].st \in {"done", "over"} THEN {"again"} ELSE {})

Complete(i, o) == /\ Runs(i, o) /\ ByJournal(i, o) /\ Oddity(i, o)
                  /\ Write(i, Record(i, "done", o, "", 0), "closing")

(* The outputs are acknowledged: of a completion, or of the fast path, which writes nothing else. *)
Send(i, o) ==
  LET x == worker[i] id == Inbox[o].id done == x.view.e[o].st = "done"
      version == IF done THEN log[x.view.e[o].at].by ELSE i IN
  /\ \/ x.claim # 0 /\ done /\ x.lane[o] = "idle" /\ Turn(i, o) /\ UNCHANGED odd
     \/ ~done /\ Runs(i, o) /\ ~ByJournal(i, o) /\ Oddity(i, o)
     \/ x.lane[o] = "early" /\ UNCHANGED odd
  /\ out' = IF \E k \in 1..Len(out) : out[k][1] = id THEN out ELSE Append(out, <<id, version>>)
  /\ worker' = [worker EXCEPT ![i].lane[o] = IF done THEN "sent" ELSE "idle",
                              ![i].view.e[o] = IF x.view.e[o].st \in Open THEN Entry("over", 0, 0) ELSE @,
                              ![i].fin = @ \cup {o}]
  /\ UNCHANGED <<log, truth, heir, group>>
EarlyRelease(i, o) == /\ Bug = "commit-early" /\ Runs(i, o) /\ ~ByJournal(i, o)
                      /\ worker' = [worker EXCEPT ![i].fin = @ \cup {o}, ![i].lane[o] = "early"]
                      /\ UNCHANGED <<log, truth, heir, group, out, odd>>

(* It fails for good, and its conversation is open from then on. *)
Park(i, o) ==
  /\ Ready(i, o) /\ ~Twin(i, o) /\ Inbox[o].id \in Poison
  /\ Cardinality({j \in 1..J : log[j].kind = "park" /\ log[j].o = o /\ log[j].ok}) < Parks
  /\ Oddity(i, o)
  /\ \/ Write(i, Record(i, "park", o, "", 0), "opening")
     \/ /\ Gaps /\ i < Workers
        /\ worker' = [worker EXCEPT ![i].lane[o] = "lost"] /\ UNCHANGED <<log, truth, heir, group, out>>

(* An arrival of an open conversation is held at once, behind records that are still on their way. *)
Hold(i, o) ==
  LET open(q) == worker[i].view.e[q].st \in Open \cup {"done"} \/ worker[i].lane[q] \in {"opening", "lost"} IN
  /\ worker[i].claim # 0 /\ Arrived(i, o)
  /\ \A q \in Earlier(o) : Settled(i, q) \/ open(q)
  /\ \E q \in Earlier(o) : open(q) /\ ~Settled(i, q)
  /\ Write(i, Record(i, "held", o, "", 0), "opening") /\ UNCHANGED odd

(* A duplicate leaves at its turn; a held one, and one that a person discarded, by a record. *)
Drop(i, o) == LET st == worker[i].view.e[o].st IN
  /\ UNCHANGED odd
  /\ \/ /\ Ready(i, o) /\ Twin(i, o) /\ st = "none"
        /\ worker' = [worker EXCEPT ![i].fin = @ \cup {o}] /\ UNCHANGED <<log, truth, heir, group, out>>
     \/ /\ \/ Ready(i, o) /\ Twin(i, o) /\ st = "held"
           \/ st = "discarded" /\ worker[i].claim # 0 /\ worker[i].lane[o] = "idle" /\ Turn(i, o)
        /\ Write(i, Record(i, "drop", o, "", 0), "closing")

(* All completions below `refers` are sent: a next owner need not send them again. *)
SaySent(i) ==
  LET x == worker[i]
      unsent == {x.view.e[o].at : o \in {q \in Off : x.view.e[q].st = "done" /\ x.lane[q] # "sent"}}
      refers == Min(unsent \cup {x.at + 1}) IN
  /\ x.claim # 0 /\ Count({"sent"}) < Sents
  /\ \E o \in Off : x.view.e[o].st = "done" /\ x.view.e[o].at < refers
  /\ ~\E j \in (x.at + 1)..J : log[j].kind = "sent" /\ log[j].by = i
  /\ Put(Record(i, "sent", 1, "", refers))
  /\ UNCHANGED <<group, worker, out, odd>>

(* Cleaning: what stays open is written again at the end, as its writer believes it to be. *)
Copy(i, o) ==
  LET e == worker[i].view.e[o] IN
  /\ worker[i].claim # 0 /\ e.st \in {"parked", "held"} /\ worker[i].lane[o] = "idle" /\ Count({"copy"}) < Copies
  /\ Put(Record(i, "copy", o, e.st, e.park))
  /\ UNCHANGED <<group, worker, out, odd>>

(* The commit: offsets from the gate, those that fit, and the journal note for the next owner. Needed   *)
(* are payloads of what is open, completions that are not said to be sent, and the ends of messages    *)
(* that this very commit does not cover.                                                               *)
Commits(i) ==
  LET x == worker[i]
      w == Max({n \in Off : 1..n \subseteq x.fin})
      above == {o \in x.fin : o > w}
      m == {o \in above : Cardinality({q \in above : q < o}) < Room}
      needed == {o \in Off : \/ x.view.e[o].st \in Open
                             \/ x.view.e[o].st = "done" /\ Bug # "low-unsent"
                             \/ x.view.e[o].st = "over" /\ o \notin (1..w) \cup m /\ Bug # "low-uncovered"}
      low == IF x.claim = 0 THEN x.note.low ELSE Min({x.view.e[o].at : o \in needed} \cup {x.at + 1})
      claim == IF Bug = "note-unclaimed" THEN 0 ELSE Max({j \in 1..(low - 1) : log[j].kind = "claim"})
  IN [owner |-> i, by |-> i, w |-> w, m |-> m, low |-> low, claim |-> claim]
Commit(i) ==
  /\ i = group.owner /\ i < Workers /\ group.by # i       \* the group refuses the others' commits
  /\ \A o \in Off : worker[i].lane[o] # "lost"             \* a failed write ends the worker
  /\ group' = Commits(i)
  /\ worker' = [worker EXCEPT ![i].note = [low |-> group'.low, claim |-> group'.claim]]
  /\ heir' = Fold(NoView(group'.claim), group'.low, J)
  /\ UNCHANGED <<log, truth, out, odd>>

(* A person wishes something of a parked message, perhaps of one whose park is over by now. *)
Wish(j, kind) ==
  /\ log[j].kind = "park" /\ Count({kind}) < IF kind = "redrive" THEN Redrives ELSE Discards
  /\ Put([kind |-> kind, claim |-> 0, by |-> 0, o |-> log[j].o, refers |-> j, ok |-> FALSE,
          \* history: whether it means what is so
          state |-> IF truth.e[log[j].o].st = "parked" /\ truth.e[log[j].o].park = j THEN "meant" ELSE ""])
  /\ UNCHANGED <<group, worker, out, odd>>

(* Everything has come to its end, or waits for a person who says no more: any other standstill is an error. *)
Discarded(d) == \E j \in 1..J : log[j].kind = "discard" /\ log[j].state = "meant" /\ Inbox[log[j].o].id = d
DoneId(d) == \E k \in 1..Len(out) : out[k][1] = d
Finish == /\ \/ worker[group.owner].fin = Off /\ \A d \in Ids : DoneId(d) \/ Discarded(d)
             \/ Count(Commands) = Redrives + Discards /\ \E o \in Off : truth.e[o].st = "parked"
          /\ UNCHANGED vars

Next == \/ Finish
        \/ \E i \in Worker : Claim(i) \/ Read(i) \/ Commit(i) \/ SaySent(i)
        \/ \E i \in Worker, o \in Off : \/ Complete(i, o) \/ Send(i, o) \/ Park(i, o) \/ Hold(i, o) \/ Drop(i, o)
                                        \/ Copy(i, o) \/ EarlyRelease(i, o)
        \/ \E j \in 1..J, kind \in Commands : Wish(j, kind)
Spec == Init /\ [][Next]_vars

-------------------------------------------------------------------------------
(* What must hold. *)
Done(d) == {j \in 1..J : log[j].kind = "done" /\ Inbox[log[j].o].id = d /\ log[j].ok}
First(d) == Min({o \in Off : Inbox[o].id = d})

(* 1, 3: what the group counts as finished had its effect or is in the journal, or its twin did or is. *)
Kept(g) == \A o \in Covered(g) : \E q \in {q \in Off : Inbox[q].id = Inbox[o].id} :
  truth.e[q].st # "none" \/ (~Inbox[q].many /\ DoneId(Inbox[q].id))
NothingLost == Kept(group) /\ Kept(Commits(group.owner))
(* 2: outputs take effect in log order in each conversation, and messages run in it. *)
OutputOrder == \A a, b \in 1..Len(out) : a < b =>
  LET x == First(out[a][1]) y == First(out[b][1]) IN Inbox[x].conv = Inbox[y].conv => x < y
HandledInOrder == "late" \notin odd
(* 4: what has come to its end in the journal never runs again; one completion for each id. *)
NotAgain == "again" \notin odd
OneCompletion == \A d \in Ids : Cardinality(Done(d)) <= 1
(* 5: nothing is dropped in silence: who has nothing left to do has really done everything. *)
Drained == LET x == worker[group.owner] IN
  (x.claim # 0 /\ x.fin = Off /\ \A o \in Off : Settled(group.owner, o)) => \A d \in Ids : DoneId(d) \/ Discarded(d)
(* 5: a wish that meant a message's park as it was ends that park, and one that did not changes nothing. *)
WishesCount ==
  /\ \A j \in 1..J : log[j].state = "meant" => ~(truth.e[log[j].o].st = "parked" /\ truth.e[log[j].o].park = log[j].refers)
  /\ \A o \in Off : truth.e[o].st \in {"redriven", "discarded"} =>
       \E j \in 1..J : log[j].state = "meant" /\ log[j].o = o /\ log[j].refers = truth.e[o].park
(* 8: the output of a recorded handler that took effect is that of its valid completion. *)
NoZombieOutput == \A k \in 1..Len(out) : Inbox[First(out[k][1])].many => \E j \in Done(out[k][1]) : log[j].by = out[k][2]
(* Who starts from a commit's note believes what one believes who reads everything. *)
Same(g, view) ==
  /\ view.claim = truth.claim
  /\ \A o \in Off : CASE truth.e[o].st \in Open \cup {"done"} -> view.e[o] = truth.e[o]
                      [] truth.e[o].st = "over" /\ o \notin Covered(g) -> view.e[o].st = "over"
                      [] OTHER -> view.e[o].st \in {"none", "over"}
SameView == LET now == Commits(group.owner) IN
  /\ Same(group, heir)
  /\ Same(now, Fold(NoView(now.claim), now.low, J))
(* What the group keeps never falls. *)
Forward == LET now == Commits(group.owner) IN now.w >= group.w /\ now.low >= group.low
===============================================================================
