------------------------------ MODULE Reentrance ------------------------------
(* One conversation of one agent: a message m asks another agent, which asks back in the same         *)
(* conversation before it answers. n is any other message of it.                                      *)
(*                                                                                                    *)
(* m holds the lane while it waits, in memory or suspended in the journal; so what comes of it runs   *)
(* inside it. Workers die and others go on with what is in the inbox, the journal and the commit.     *)
(* What a zombie may do, and how a record comes to count, is in Delivery.tla and Steps.tla.           *)
EXTENDS Naturals, Sequences

CONSTANTS
  Back,    \* the questions that come back because m asks
  Deaths,  \* so often the worker dies
  Late,    \* whether m may go on without its answer, as its deadline has passed
  Bug      \* "" or the name of a seeded bug

One == {"q"}
Two == {"q", "r"}
Ids == {"m", "n"} \cup Back
Range(s) == {s[k] : k \in 1..Len(s)}
Only(s, S) == SelectSeq(s, LAMBDA x : x \in S)

VARIABLES
  inbox,   \* in log order
  asked,   \* m's question was sent
  jrn,     \* what the journal has of each: none, waiting (suspended), held, done (its outputs may not be sent)
  out,     \* whose outputs arrived
  group,   \* whose offsets are committed as released
  w,       \* the worker: got (so many of the inbox are delivered), lane (what waits in it), cur (what runs there),
           \* in, incur (the same inside m), st (of m: on, asks, outlives), rel (released), mine (completed here)
  deaths
vars == <<inbox, asked, jrn, out, group, w, deaths>>

Fresh == [got |-> 0, lane |-> <<>>, cur |-> "", in |-> <<>>, incur |-> "", st |-> "off", rel |-> {}, mine |-> {}]

Init == /\ inbox = <<"m">> /\ asked = FALSE /\ jrn = [x \in Ids |-> "none"] /\ out = {} /\ group = {}
        /\ w = Fresh /\ deaths = 0

Arrive == /\ "n" \notin Range(inbox)
          /\ inbox' = Append(inbox, "n") /\ UNCHANGED <<asked, jrn, out, group, w, deaths>>
AskBack(x) == /\ asked /\ x \notin Range(inbox)
              /\ inbox' = Append(inbox, x) /\ UNCHANGED <<asked, jrn, out, group, w, deaths>>

Admitted == IF Bug = "any-inside" THEN Ids \ {"m"} ELSE IF Bug = "none-inside" THEN {} ELSE Back
Holds == w.cur = "m" /\ w.st \in {"asks", "outlives"}    \* its handler has asked

Deliver ==
  LET x == inbox[w.got + 1] y == [w EXCEPT !.got = @ + 1] IN
  /\ w.got < Len(inbox)
  /\ w' = IF x \in group THEN y
          ELSE IF jrn[x] # "none" THEN [y EXCEPT !.rel = @ \cup {x}]
          ELSE IF Holds /\ x \in Admitted THEN [y EXCEPT !.in = Append(@, x)]
          ELSE [y EXCEPT !.lane = Append(@, x)]
  /\ UNCHANGED <<inbox, asked, jrn, out, group, deaths>>

(* What has its turn behind a suspended m is held, unless it comes of m. *)
Begin ==
  LET x == Head(w.lane) y == [w EXCEPT !.lane = Tail(@)] IN
  /\ w.cur = "" /\ w.lane # <<>>
  /\ IF jrn["m"] = "waiting" /\ x # "m" /\ (x \notin Admitted \/ Bug = "held-back")
     THEN /\ w' = [y EXCEPT !.rel = @ \cup {x}]
          /\ jrn' = [jrn EXCEPT ![x] = "held"]
     ELSE /\ w' = [y EXCEPT !.cur = x, !.st = IF x = "m" THEN "on" ELSE @]
          /\ UNCHANGED jrn
  /\ UNCHANGED <<inbox, asked, out, group, deaths>>

(* What came before m asked, as after a crash, waits behind it: it is taken from there. *)
Ask ==
  LET take == IF Bug = "left-behind" THEN {} ELSE Admitted IN
  /\ w.cur = "m" /\ w.st = "on"
  /\ asked' = TRUE
  /\ w' = [w EXCEPT !.st = "asks", !.in = @ \o Only(w.lane, take), !.lane = Only(@, Ids \ take)]
  /\ UNCHANGED <<inbox, jrn, out, group, deaths>>

Suspend ==
  /\ w.cur = "m" /\ w.st = "asks" /\ Bug # "left-behind"    \* as one that runs inside another itself
  /\ jrn' = [jrn EXCEPT !["m"] = "waiting"]
  /\ w' = [w EXCEPT !.cur = "", !.st = "off", !.rel = @ \cup {"m"}]
  /\ UNCHANGED <<inbox, asked, out, group, deaths>>

Ready == Back \subseteq out \/ (Late /\ asked)
Inside == w.in # <<>> \/ w.incur # ""
(* What is in the journal and may go on comes to its lane again. *)
Bring(x) ==
  /\ w.cur # x /\ x \notin Range(w.lane)
  /\ IF x = "m" THEN jrn[x] = "waiting" /\ Ready ELSE jrn[x] = "held" /\ jrn["m"] # "waiting" /\ w.cur # "m"
  /\ w' = [w EXCEPT !.lane = Append(@, x)]
  /\ UNCHANGED <<inbox, asked, jrn, out, group, deaths>>

(* m ends, by the fast path if it was never suspended; the lane goes on when nothing is inside it. *)
End ==
  /\ w.cur = "m" /\ w.st = "asks" /\ Ready
  /\ \/ jrn["m"] = "none" /\ out' = out \cup {"m"} /\ UNCHANGED jrn
     \/ jrn' = [jrn EXCEPT !["m"] = "done"] /\ UNCHANGED out
  /\ w' = [w EXCEPT !.st = "outlives", !.rel = @ \cup {"m"}, !.mine = @ \cup {"m"}]
  /\ UNCHANGED <<inbox, asked, group, deaths>>
Outlive ==
  /\ w.cur = "m" /\ w.st = "outlives" /\ (Inside => Bug = "not-outlived")
  /\ w' = [w EXCEPT !.cur = "", !.st = "off"]
  /\ UNCHANGED <<inbox, asked, jrn, out, group, deaths>>

BeginInside ==
  /\ w.incur = "" /\ w.in # <<>>
  /\ w' = [w EXCEPT !.incur = Head(w.in), !.in = Tail(w.in)]
  /\ UNCHANGED <<inbox, asked, jrn, out, group, deaths>>

Finish(x) ==
  /\ x # "m" /\ x \in {w.cur, w.incur}
  /\ \/ jrn[x] = "none" /\ out' = out \cup {x} /\ UNCHANGED jrn
     \/ jrn' = [jrn EXCEPT ![x] = "done"] /\ UNCHANGED out
  /\ w' = [w EXCEPT !.cur = IF @ = x THEN "" ELSE @, !.incur = IF @ = x THEN "" ELSE @,
                    !.rel = @ \cup {x}, !.mine = @ \cup {x}]
  /\ UNCHANGED <<inbox, asked, group, deaths>>

(* Outputs are sent from the completion: by who wrote it, or by the next owner, at once if it is the first of the *)
(* conversation or was completed inside another.                                                                  *)
Send(x) ==
  /\ jrn[x] = "done" /\ x \notin out
  /\ x \in w.mine \/ jrn["m"] # "waiting" \/ Bug # "unsent-inside"
  /\ out' = out \cup {x} /\ UNCHANGED <<inbox, asked, jrn, group, w, deaths>>

Commit == /\ ~(w.rel \subseteq group)
          /\ group' = group \cup w.rel /\ UNCHANGED <<inbox, asked, jrn, out, w, deaths>>
Die == /\ deaths < Deaths /\ deaths' = deaths + 1 /\ w' = Fresh
       /\ UNCHANGED <<inbox, asked, jrn, out, group>>

Done == Ids \subseteq out /\ UNCHANGED vars
Next == Arrive \/ Deliver \/ Begin \/ Ask \/ Suspend \/ End \/ Outlive \/ BeginInside \/ Commit \/ Die \/ Done
        \/ (\E x \in Back : AskBack(x)) \/ (\E x \in Ids : Bring(x) \/ Finish(x) \/ Send(x))
Spec == Init /\ [][Next]_vars

-------------------------------------------------------------------------------
(* Nothing else of the conversation runs beside m, before it, or beside what is inside it; that it all comes to an *)
(* end is TLC's search for deadlocks.                                                                             *)
Alone == "n" \in {w.cur, w.incur} =>
           /\ w.cur # "m" /\ ("m" \in out \/ jrn["m"] = "done")
           /\ {w.cur, w.incur} \subseteq {"n", ""}
(* What is inside is handled one at a time, and a released offset had its effect or is in the journal. *)
Kept == \A x \in w.rel \cup group : x \in out \/ jrn[x] # "none"
===============================================================================
