--------------------------------- MODULE Steps ---------------------------------
(* One invocation of a handler: what it does is recorded step by step, it asks, it waits, it is       *)
(* suspended and run again, and workers that own its partition come one after the other.              *)
(*                                                                                                    *)
(* Around it: its partition's journal, the answers to its questions, the group's commit, the agent    *)
(* that it asks, the person who approves or cancels, and whoever receives its output. Delivery.tla    *)
(* explains what a worker, a zombie, a claim and a fold are, and how to read TLA+.                    *)
(*                                                                                                    *)
(* To keep the state space small: a worker commits at most once, if another one comes after it; what  *)
(* the owner could commit is checked in every state. An assignment happens together with the claim.   *)
EXTENDS Naturals, Sequences, FiniteSets

CONSTANTS
  Handler,   \* what it does: a sequence of sets of operations; those of one set go on side by side
  Workers,   \* so many times the partition is assigned
  Claims,    \* so many claims there are before only the owner claims again
  Answers,   \* so often the agent asked answers one question; each time something else
  Late,      \* whether deadlines can pass
  Decisions, \* so many times people approve or reject
  Cancels,   \* so many times people cancel
  Copies, Sents,  \* so many copies, and records that say "sent", are written
  Others,    \* whether other invocations can need journal records below those that this one needs
  Bug        \* "" or the name of a seeded bug

(* Operations, and handlers for the configurations. A timer is a step, whose result is when it is due, *)
(* and a wait until then.                                                                              *)
StepAskStep == << {"s1"}, {"q"}, {"s2"} >>
AskStep     == << {"q"}, {"s2"} >>
AskAskStep  == << {"q"}, {"p"}, {"s2"} >>
AskApprove  == << {"q"}, {"ok"}, {"s2"} >>
ApproveAsk  == << {"ok"}, {"q"}, {"s2"} >>
Together    == << {"s1", "q", "ok"}, {"s2"} >>
Sleep       == << {"due"}, {"nap"}, {"s2"} >>
ApproveSleep == << {"ok"}, {"nap"} >>
StepApprove == << {"s1"}, {"ok"} >>
Approve     == << {"ok"} >>

Main == UNION {Handler[n] : n \in 1..Len(Handler)}
(* Where one that had begun is cancelled, its cleanup runs: one more step. *)
Cleanup == IF Cancels > 0 THEN {"u"} ELSE {}
Ops == Main \cup Cleanup
Steps == Ops \cap {"s1", "s2", "due"}
Questions == Ops \cap {"q", "p"}
Approvals == Ops \cap {"ok"}
Timers == Ops \cap {"nap"}
Waiting == Main \ Steps
Worker == 1..Workers
Max(S) == IF S = {} THEN 0 ELSE CHOOSE x \in S : \A y \in S : y <= x
Min(S) == CHOOSE x \in S : \A y \in S : x <= y

None == <<>>                            \* no result; every result is a tuple with something in it
Nothing == [op \in Ops |-> None]        \* what one that was cancelled before it began has as its result
Place(op) == CHOOSE n \in 1..Len(Handler) : op \in Handler[n]
(* What it has to do now, where it knows these results. *)
Now(res) == LET open == {n \in 1..Len(Handler) : \E op \in Handler[n] : res[op] = None}
            IN IF open = {} THEN {} ELSE {op \in Handler[Min(open)] : res[op] = None}
(* A step is computed from what was waited for before it. *)
From(res, op) == IF op \in Cleanup THEN {} ELSE {<<o, res[o]>> : o \in {o \in Waiting : Place(o) < Place(op)}}

VARIABLES
  log,      \* the journal: [kind, claim (of its writer), op, v (result), waits, refers]; void records are left
            \* out, as they change nothing that anybody believes
  truth,    \* what one believes who reads all of the journal
  heir,     \* what one believes who reads it from the place that the last commit names
  answers,  \* answers to its questions, in log order: [op, v]; a deadline that passed is one, too
  asked,    \* questions and requests for approval that were sent
  group,    \* what the group keeps: owner, and of the last commit: by (its worker; 0: there is none), over (the
            \* inbox offset is released), low and claim (where to read the journal from), ans (and the answers)
  worker,   \* of each worker, see Fresh
  out,      \* the outputs that took effect: the first, as they all have one id
  odd       \* history: "again": something recorded was executed again
vars == <<log, truth, heir, answers, asked, group, worker, out, odd>>

J == Len(log)

-------------------------------------------------------------------------------
(* The fold. What a reader of the journal believes: whether the invocation is suspended, done or over,  *)
(* results and the places in the journal that say so. at: where its message is, or its outputs; waits:  *)
(* what it is suspended for, and said: where that was said, if not there.                               *)
NoView(claim) == [claim |-> claim, st |-> "none", at |-> 0, waits |-> {}, said |-> 0, res |-> Nothing,
                  place |-> [op \in Ops |-> 0], cancel |-> 0]
Known(v) == v.st # "none" \/ v.res # Nothing

Commands == {"decide", "cancel"}
Valid(v, r) == r.kind \in Commands \/ r.claim >= v.claim \/ Bug = "void-steps"

Fold1(v, r, at) ==
  IF r.kind = "claim" THEN [v EXCEPT !.claim = at]
  ELSE IF ~Valid(v, r) \/ v.st = "over" THEN v
  ELSE IF r.kind = "sent" THEN (IF v.st = "done" /\ v.at < r.refers THEN [NoView(v.claim) EXCEPT !.st = "over"] ELSE v)
  ELSE IF v.st = "done" THEN v
  ELSE CASE r.kind \in {"step", "decide"} ->     \* the first one is the result
              IF r.kind = "decide" /\ ~Known(v) /\ Bug = "decided-unknown" THEN v
              ELSE IF v.res[r.op] = None THEN [v EXCEPT !.res[r.op] = r.v, !.place[r.op] = at] ELSE v
         \* Where reading began behind the result, but before a later one, the copy says which was the first.
         [] r.kind = "step-copy" ->
              [v EXCEPT !.res[r.op] = IF @ # None /\ Bug = "copy-second" THEN @ ELSE r.v, !.place[r.op] = at]
         [] r.kind \in {"suspend", "copy"} -> [v EXCEPT !.st = "suspended", !.at = at, !.waits = r.waits, !.said = 0]
         [] r.kind = "again" -> [v EXCEPT !.st = "suspended", !.waits = r.waits, !.said = at]
         [] r.kind = "cancel" -> IF v.cancel = 0 THEN [v EXCEPT !.cancel = at] ELSE v
         [] r.kind = "done" -> [v EXCEPT !.st = "done", !.at = at, !.res = r.v]

RECURSIVE Fold(_, _, _)
Fold(v, from, to) == IF from > to THEN v ELSE Fold(Fold1(v, log[from], from), from + 1, to)
Put(r) == IF r.kind = "claim" \/ Valid(truth, r)
          THEN log' = Append(log, r) /\ truth' = Fold1(truth, r, J + 1) /\ heir' = Fold1(heir, r, J + 1)
          ELSE UNCHANGED <<log, truth, heir>>

-------------------------------------------------------------------------------
(* A worker. claim, at, view: as in Delivery. from, ans: it has read the answers from there to there.   *)
(* run: "off", "live", "leaving": its suspension is on its way; or "undo": its cleanup. Of the run: res (what the handler     *)
(* knows), sent (what it asked and waits for). ran: it ran here before. pin: at most one position of the *)
(* answers, which commits must not pass. busy: records on their way. given: it began with the offset     *)
(* released. told: outputs are sent. look: what a copier saw (for a seeded bug).                         *)
Fresh(g) == [claim |-> 0, at |-> 0, view |-> NoView(0), from |-> g.ans, ans |-> g.ans, run |-> "off", res |-> Nothing,
             sent |-> {}, ran |-> FALSE, pin |-> {}, busy |-> {}, given |-> g.over, told |-> FALSE,
             look |-> {}, note |-> [low |-> g.low, claim |-> g.claim, ans |-> g.ans]]
Gone(x) == LET n == x.note IN
  [Fresh([low |-> n.low, claim |-> n.claim, ans |-> n.ans, over |-> x.given]) EXCEPT !.note = n]
Over == Gone(Fresh([low |-> 1, claim |-> 0, ans |-> 0, over |-> FALSE]))

Finished(x) == x.given \/ x.view.st \in {"suspended", "over"} \/ (x.view.st = "done" /\ x.told)
Waits(x) == IF x.view.st = "suspended" THEN x.view.waits ELSE {}
(* It was suspended, and something of that has come, be it before, or it is cancelled: it is to be run again. *)
Runnable(x) ==
  LET came(op) == x.view.res[op] # None
                  /\ (Bug = "came-before" => x.view.place[op] > Max({x.view.at, x.view.said}))
  IN x.view.st = "suspended" /\ (x.view.cancel # 0 \/ \E op \in Waits(x) : came(op))
(* Its handler had begun, as far as is known: it is to clean up when it is cancelled. *)
Begun(x) == Bug # "cleanup-skipped" /\ (x.view.st = "suspended" \/ x.view.res # Nothing)
(* Steps that a run is to execute. *)
Todo(x) == IF x.run = "live" THEN Now(x.res) \cap Steps
           ELSE IF x.run = "undo" /\ x.res["u"] = None THEN {"u"} ELSE {}

(* The place of the first answer to a question among those that the worker has read; 0: none. *)
Met(x, op) == LET S == {k \in (x.from + 1)..x.ans : answers[k].op = op} IN IF S = {} THEN 0 ELSE Min(S)
(* Answers to a suspended one that the journal doesn't have yet: to all that it asked, as one that runs *)
(* again asks what no record tells of.                                                                  *)
Loose(x) == {op \in Questions : x.view.st = "suspended" /\ x.view.res[op] = None /\ Met(x, op) # 0
                                /\ (Bug = "listed-only" => x.run = "off" /\ op \in Waits(x))
                                /\ (Bug = "hand-forgotten" => op \in Waits(x))}
(* The position of the answers that a commit may tell a next owner to begin at. *)
Position(x) ==
  LET loose == IF Bug = "pass-unjournaled" THEN {} ELSE {Met(x, op) - 1 : op \in Loose(x)}
      \* one that was delivered, and has perhaps asked already when another worker ran it
      again == ~x.ran /\ ~Finished(x) /\ Bug # "rerun-unpinned"
  IN IF x.claim = 0 THEN x.note.ans
     ELSE Min({x.ans} \cup x.pin \cup loose \cup (IF again THEN {x.from} ELSE {}))

Record(x, kind) ==
  [kind |-> kind, claim |-> x.claim, op |-> "", v |-> None, waits |-> {}, refers |-> 0]
Count(kinds) == Cardinality({j \in 1..J : log[j].kind \in kinds})

Init == /\ log = <<>> /\ truth = NoView(0) /\ heir = NoView(0) /\ answers = <<>> /\ asked = {}
        /\ out = <<>> /\ odd = {}
        /\ group = [owner |-> 1, by |-> 0, over |-> FALSE, low |-> 1, claim |-> 0, ans |-> 0]
        /\ worker = [i \in Worker |-> Fresh(group)]

(* What was read changes the run: a result that came, its suspension or its end. *)
Learn(x, v, at) == [x EXCEPT !.view = v, !.at = at, !.busy = {},
  !.res = IF x.run = "off" THEN @ ELSE [op \in Ops |-> IF @[op] # None THEN @[op] ELSE v.res[op]],
  !.run = IF v.st \in {"done", "over"} \/ (x.run = "leaving" /\ v.st = "suspended") THEN "off"
          ELSE IF v.cancel # 0 /\ x.run = "live" THEN "undo" ELSE @,
  !.pin = IF v.st \in {"done", "over"} \/ (x.run = "leaving" /\ v.st = "suspended") THEN {} ELSE @]

Claim(i) ==
  LET new == i > group.owner
      x == IF new THEN Fresh(group) ELSE worker[i]
      \* Where no commit says where the answers begin, nobody had asked by the last commit: all of them are new.
      start == IF group.by = 0 /\ new /\ Bug = "answers-from-end" THEN Len(answers) ELSE x.from
  IN
  /\ i <= group.owner + 1 /\ x.claim = 0
  /\ i >= group.owner \/ Count({"claim"}) < Claims
  /\ group' = [group EXCEPT !.owner = Max({i, @})]
  /\ Put([Record(x, "claim") EXCEPT !.claim = 0])
  /\ worker' = [worker EXCEPT ![i] =
       [Learn(x, [Fold(NoView(x.note.claim), x.note.low, J) EXCEPT !.claim = J + 1], J + 1)
          EXCEPT !.claim = J + 1, !.from = start, !.ans = start]]
  /\ UNCHANGED <<answers, asked, out, odd>>

Read(i) == LET x == worker[i] v == Fold(x.view, x.at + 1, J) IN
  /\ x.claim # 0 /\ x.at < J
  /\ worker' = [worker EXCEPT ![i] =
       IF Bug = "steps-unread" THEN [x EXCEPT !.at = J]      \* it believes itself, and hears of nothing else
       ELSE IF v.claim # x.claim
       THEN IF i < group.owner /\ Count({"claim"}) >= Claims THEN Over ELSE Gone(x)
       ELSE Learn(x, v, J)]
  /\ UNCHANGED <<log, truth, heir, answers, asked, group, out, odd>>

(* A record counts for its writer when it has read it back, no newer claim before it. *)
Write(i, r, x, busy) ==
  /\ Put(r)
  /\ worker' = [worker EXCEPT ![i] =
       IF Bug = "steps-unread" THEN Learn(x, Fold1([x.view EXCEPT !.claim = r.claim], r, J + 1), x.at)
       ELSE [x EXCEPT !.busy = @ \cup {busy}]]
  /\ UNCHANGED <<answers, asked, group, out>>

-------------------------------------------------------------------------------
(* The handler. *)
Again(x, op) == odd' = IF x.claim = truth.claim /\ (truth.res[op] # None \/ truth.st \in {"done", "over"})
                       THEN odd \cup {"again"} ELSE odd

(* It begins, or begins again, with what is recorded. What was never suspended pins the answers, from   *)
(* its first question on where nobody can have run it before. Those of others are journaled.            *)
Start(i) ==
  LET x == worker[i]
      latest(op) == LET S == {k \in (x.from + 1)..x.ans : answers[k].op = op}
                    IN IF op \in Questions /\ S # {} THEN answers[Max(S)].v ELSE x.view.res[op]
  IN
  /\ x.claim # 0 /\ x.run = "off" /\ x.busy = {} /\ (x.view.cancel # 0 => Begun(x))
  /\ (x.view.st = "none" /\ ~x.given) \/ Runnable(x)
  /\ worker' = [worker EXCEPT ![i] =
       [x EXCEPT !.run = IF x.view.cancel # 0 THEN "undo" ELSE "live", !.sent = {}, !.ran = TRUE,
                 !.res = [op \in Ops |-> IF Bug = "late-answer" THEN latest(op) ELSE x.view.res[op]],
                 !.pin = IF x.view.st = "suspended" \/ (i = 1 /\ x.claim = 1) THEN {} ELSE {Position(x)}]]
  /\ UNCHANGED <<log, truth, heir, answers, asked, group, out, odd>>

Step(i, op) ==
  LET x == worker[i] IN
  /\ op \in Todo(x) \ x.busy
  /\ Again(x, op)
  /\ Write(i, [Record(x, "step") EXCEPT !.op = op, !.v = <<x.claim, From(x.res, op)>>], x, op)

(* All questions of its place are sent at once. An answer that nobody waited for was kept. One that was     *)
(* suspended before has its answers from the journal, as Learn gives them.                                   *)
Take(x) == [x EXCEPT !.res = [op \in Ops |->
  IF x.view.st = "none" /\ x.res[op] = None /\ op \in x.sent \cap Questions /\ Met(x, op) # 0 THEN answers[Met(x, op)].v ELSE x.res[op]]]
Ask(i) ==
  LET x == worker[i]
      ask == (Now(x.res) \cap (Questions \cup Approvals)) \ x.sent
      pins == x.pin = {} /\ (x.view.st = "none" \/ Bug = "listed-only")
  IN
  /\ x.run = "live" /\ ask # {}
  /\ asked' = asked \cup ask
  /\ worker' = [worker EXCEPT ![i] =
       Take([x EXCEPT !.sent = @ \cup ask, !.pin = IF pins THEN {x.ans} ELSE @])]
  /\ UNCHANGED <<log, truth, heir, answers, group, out, odd>>

(* The owner reads its answers; a handler that waits for one takes it. *)
Hear(i) ==
  LET x == worker[i] now == [x EXCEPT !.ans = Len(answers)] IN
  /\ x.claim # 0 /\ x.ans < Len(answers)
  /\ worker' = [worker EXCEPT ![i] =
       IF x.run = "live" THEN Take(now)
       ELSE IF x.run = "leaving" /\ Bug = "come-dropped" THEN [now EXCEPT !.from = now.ans] ELSE now]
  /\ UNCHANGED <<log, truth, heir, answers, asked, group, out, odd>>

(* It has nothing to do but to wait. *)
Stuck(x) == /\ x.run = "live" /\ Now(x.res) # {} /\ Now(x.res) \cap Steps = {}
            /\ Now(x.res) \cap (Questions \cup Approvals) \subseteq x.sent
InHand(x) == {op \in Questions : x.view.st = "none" /\ x.res[op] # None /\ x.view.res[op] = None}

(* Answers that no record has yet, and times that have come, become results. *)
Results(i, op) ==
  LET x == worker[i]
      result(v) == Write(i, [Record(x, "step") EXCEPT !.op = op, !.v = v], x, op) /\ UNCHANGED odd
      waits == op \in IF Stuck(x) THEN Now(x.res) ELSE IF x.run = "off" THEN Waits(x) ELSE {}
  IN
  /\ x.claim # 0 /\ x.view.res[op] = None /\ op \notin x.busy
  /\ \/ Stuck(x) /\ op \in InHand(x) /\ result(x.res[op])
     \/ op \in Loose(x) /\ result(answers[Met(x, op)].v)
     \/ waits /\ op \in Timers /\ result(<<"woke", 0>>)
     \/ waits /\ op \in Approvals /\ Late /\ result(<<"late", 0>>)

(* It has waited for long. Where it was suspended before, the journal has its message already, and answers  *)
(* may be on their way there.                                                                                *)
Suspend(i) ==
  LET x == worker[i] kind == IF x.view.st = "none" THEN "suspend" ELSE "again" IN
  /\ Stuck(x) /\ x.busy \subseteq Questions
  /\ InHand(x) = {} \/ Bug = "hand-forgotten"
  /\ Write(i, [Record(x, kind) EXCEPT !.waits = Now(x.res)], [x EXCEPT !.run = "leaving"], kind)
  /\ UNCHANGED odd

(* The deadline of a question: whoever takes himself for the owner appends it, if he has met no answer.  *)
Deadline(i, op) ==
  LET x == worker[i] IN
  /\ Late /\ x.claim # 0 /\ Met(x, op) = 0
  /\ \/ x.run = "live" /\ op \in x.sent /\ x.res[op] = None
     \/ x.run = "off" /\ op \in Waits(x) /\ x.view.res[op] = None
  /\ IF Bug = "deadline-unlogged"
     THEN x.run = "live" /\ worker' = [worker EXCEPT ![i].res[op] = <<"late", 0>>] /\ UNCHANGED answers
     ELSE /\ ~\E k \in 1..Len(answers) : answers[k] = [op |-> op, v |-> <<"late", 0>>]
          /\ answers' = Append(answers, [op |-> op, v |-> <<"late", 0>>]) /\ UNCHANGED worker
  /\ UNCHANGED <<log, truth, heir, asked, group, out, odd>>

(* Its end, or that of one that is cancelled, is recorded, then its outputs are sent, then it is said so. *)
Complete(i) ==
  LET x == worker[i] IN
  /\ x.claim # 0 /\ x.busy = {} /\ x.view.st \in {"none", "suspended"} /\ UNCHANGED odd
  /\ \/ x.run = "live" /\ Now(x.res) = {} /\ Write(i, [Record(x, "done") EXCEPT !.v = x.res], x, "done")
     \/ x.run = "undo" /\ Todo(x) = {}
        /\ Write(i, [Record(x, "done") EXCEPT !.v = [Nothing EXCEPT !["u"] = x.res["u"]]], x, "done")
     \/ x.run = "off" /\ x.view.cancel # 0 /\ ~Begun(x) /\ (x.view.st = "suspended" \/ ~x.given)
        /\ Write(i, [Record(x, "done") EXCEPT !.v = Nothing], x, "done")
Send(i) ==
  LET x == worker[i] take(v) == out' = IF out = <<>> THEN <<v>> ELSE out IN
  /\ x.claim # 0
  /\ \/ /\ x.view.st = "done" /\ ~x.told
        /\ (Bug = "cancel-unanswered" => x.view.cancel = 0)
        /\ take(x.view.res) /\ worker' = [worker EXCEPT ![i].told = TRUE]
     \/ Bug = "output-early" /\ x.run = "live" /\ Now(x.res) = {} /\ out = <<>> /\ take(x.res) /\ UNCHANGED worker
  /\ UNCHANGED <<log, truth, heir, answers, asked, group, odd>>
SaySent(i) ==
  LET x == worker[i] IN
  /\ x.view.st = "done" /\ x.told /\ x.busy = {} /\ Count({"sent"}) < Sents
  /\ Write(i, [Record(x, "sent") EXCEPT !.refers = x.view.at + 1], x, "sent") /\ UNCHANGED odd

(* Cleaning: what is suspended, and doesn't run, is written again at the end, one record after the other, *)
(* with a look at the very moment at which it is handed to the producer.                                  *)
Copy(i, what) ==
  LET x == worker[i]
      v == IF Bug = "copy-unlooked" /\ x.look # {} THEN CHOOSE v \in x.look : TRUE ELSE x.view
      idle == x.run = "off" /\ x.busy = {} /\ x.view.st = "suspended" /\ x.view.cancel = 0
  IN
  /\ x.claim # 0 /\ Count({"copy", "step-copy"}) < Copies
  /\ IF Bug = "copy-unlooked" THEN x.look # {} ELSE idle
  /\ \/ what = "suspend" /\ Put([Record(x, "copy") EXCEPT !.waits = v.waits])
     \/ what \in Ops /\ v.res[what] # None /\ Put([Record(x, "step-copy") EXCEPT !.op = what, !.v = v.res[what]])
  /\ UNCHANGED <<answers, asked, group, worker, out, odd>>
Look(i) == LET x == worker[i] IN
  /\ Bug = "copy-unlooked" /\ x.look = {} /\ x.run = "off" /\ x.busy = {} /\ x.view.st = "suspended"
  /\ worker' = [worker EXCEPT ![i].look = {x.view}]
  /\ UNCHANGED <<log, truth, heir, answers, asked, group, out, odd>>

(* Needed in the journal: what is open, and outputs that are not said to be sent. What is released and not *)
(* suspended is over: what people still say of it is of no use.                                            *)
Needed(x) == LET v == x.view IN
  CASE v.st = "over" -> {}
    [] v.st = "done" -> {v.at}
    [] v.st = "none" /\ x.given /\ Bug # "stray-kept" -> {}
    [] OTHER -> {v.at, v.said} \cup (IF Bug = "cancel-forgotten" THEN {} ELSE {v.cancel})
                  \cup (IF Bug = "low-over-steps" THEN {} ELSE {v.place[op] : op \in Ops})
Low(x) == IF x.claim = 0 THEN x.note.low ELSE Min((Needed(x) \ {0}) \cup {x.at + 1})
Commits(i, low) == [owner |-> i, by |-> i, over |-> Finished(worker[i]), low |-> low,
                    claim |-> Max({j \in 1..(low - 1) : log[j].kind = "claim"}), ans |-> Position(worker[i])]
Commit(i) ==
  /\ i = group.owner /\ i < Workers /\ group.by # i       \* the group refuses the others' commits
  /\ \E low \in (IF Others THEN group.low..Low(worker[i]) ELSE {Low(worker[i])}) :
       /\ group' = Commits(i, low)
       /\ heir' = Fold(NoView(group'.claim), low, J)
  /\ worker' = [worker EXCEPT ![i].note = [low |-> group'.low, claim |-> group'.claim, ans |-> group'.ans],
                              ![i].given = group'.over]
  /\ UNCHANGED <<log, truth, answers, asked, out, odd>>

-------------------------------------------------------------------------------
(* The others. The agent asked drops a second question of the same id; yet it may crash, and answer again. *)
Answer(op) ==
  LET said == Cardinality({k \in 1..Len(answers) : answers[k].op = op /\ answers[k].v[1] = "said"}) IN
  /\ op \in asked \cap Questions /\ said < Answers
  /\ answers' = Append(answers, [op |-> op, v |-> <<"said", said + 1>>])
  /\ UNCHANGED <<log, truth, heir, asked, group, worker, out, odd>>
Decide(op) ==
  /\ op \in asked \cap Approvals /\ Count({"decide"}) < Decisions
  /\ Put([Record([claim |-> 0], "decide") EXCEPT !.op = op, !.v = <<"said", Count({"decide"}) + 1>>])
  /\ UNCHANGED <<answers, asked, group, worker, out, odd>>
Cancel ==
  /\ Count({"cancel"}) < Cancels /\ Put(Record([claim |-> 0], "cancel"))
  /\ UNCHANGED <<answers, asked, group, worker, out, odd>>

Finish == out # <<>> /\ UNCHANGED vars     \* any other standstill is an error
Next == \/ Finish \/ Cancel
        \/ \E op \in Ops : Answer(op) \/ Decide(op)
        \/ \E i \in Worker : \/ Claim(i) \/ Read(i) \/ Start(i) \/ Ask(i) \/ Hear(i) \/ Suspend(i) \/ Complete(i)
                             \/ Send(i) \/ SaySent(i) \/ Look(i) \/ Commit(i) \/ Copy(i, "suspend")
        \/ \E i \in Worker, op \in Ops : Step(i, op) \/ Results(i, op) \/ Copy(i, op)
        \/ \E i \in Worker, op \in Questions : Deadline(i, op)
Spec == Init /\ [][Next]_vars

-------------------------------------------------------------------------------
(* What must hold. *)
Counted(kind) == {j \in 1..J : log[j].kind = kind}
Owner == worker[group.owner]

(* 4: who holds the newest claim executes no step of which there is a valid record. *)
NoRerun == "again" \notin odd
(* 4: one result, which copies repeat; what owners write is written once. *)
OneValue ==
  /\ Cardinality(Counted("done")) <= 1
  /\ \A op \in Ops \ Approvals : Cardinality({j \in Counted("step") : log[j].op = op}) <= 1
  /\ \A c \in Counted("step-copy") :
       log[Min({j \in 1..J : log[j].kind \in {"step", "decide"} /\ log[j].op = log[c].op})].v = log[c].v
(* 4: steps were computed from the very answers that the result has. *)
Coherent(res) == \A op \in Steps : res[op] # None => res[op][2] = From(res, op)
Consistent == /\ \A k \in 1..Len(out) : Coherent(out[k])
              /\ \A j \in Counted("done") : Coherent(log[j].v)
(* Where the handler of one that is cancelled had recorded something, its cleanup ran. *)
Cleaned == \A j \in Counted("done") :
  (\E op \in Main : log[j].v[op] = None) /\ (\E k \in 1..j : log[k].kind = "step" /\ log[k].op \in Steps)
     => log[j].v["u"] # None
(* 8: no output but that of a valid completion. *)
OutputIsRecorded == out # <<>> => \E j \in Counted("done") : log[j].v = out[1]
(* 3, 5, 6: what is released is suspended or done for whoever takes over, with all that was recorded. *)
Kept(g, view) ==
  /\ view.claim = truth.claim
  /\ g.over => truth.st # "none"
  /\ CASE truth.st = "over" -> view.st = "over" \/ (g.over /\ view.st = "none")
       [] truth.st = "done" -> view.st = "done" /\ view.at = truth.at /\ view.res = truth.res
       [] OTHER -> /\ view.st = truth.st /\ view.at = truth.at /\ view.waits = truth.waits /\ view.res = truth.res
                   /\ (view.cancel = 0) = (truth.cancel = 0)
NothingDropped == LET now == Commits(group.owner, Low(Owner)) IN
  /\ Kept(group, heir)
  /\ Kept(now, Fold(NoView(now.claim), now.low, J))
(* 4: the first answer to a question is what is recorded, or is found by a next owner. *)
AnswerKept == truth.st \in {"none", "suspended"} =>
  \A op \in Questions : LET S == {k \in 1..Len(answers) : answers[k].op = op} IN
    S # {} => IF truth.res[op] # None THEN truth.res[op] = answers[Min(S)].v
              ELSE group.ans < Min(S) /\ Position(Owner) < Min(S)
(* What the group keeps never falls. *)
Forward == LET now == Commits(group.owner, Low(Owner)) IN
  now.low >= group.low /\ now.ans >= group.ans /\ (group.over => now.over)
(* Nothing that is over holds the journal. *)
Clean == (truth.st = "over" /\ group.over /\ Owner.claim # 0 /\ Owner.at = J) => Needed(Owner) \ {0} = {}
================================================================================
