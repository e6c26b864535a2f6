"""What counts as an effect: names, and what to write in their place. Data alone; a name more is a line more.

A name is written in full, however a module imports it. `()` stands for the result of a call, so `httpx.Client().get`
is the method `get` of a client; `*` stands for any name, dots included, but never for the result of a call.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

__all__ = ["CODES", "EFFECTS", "HARMLESS", "RESULTS", "Effect", "find"]


@dataclass(frozen=True, slots=True)
class Effect:
    """One kind of effect.

    Attributes:
        code: of its findings.
        does: what such a call does, as in "reads the clock".
        advice: what to write; `{ctx}` is the context's name, `{await}` is `await ` in an async handler.
        calls: names that have the effect when they are called.
        reads: names that have it when they are read.
        argument: the number of arguments from which on a call has no effect (`time.localtime(t)`); 0: always has it.
        fleeting: its value does no harm where it is only logged.
    """

    code: str
    does: str
    advice: str
    calls: tuple[str, ...]
    reads: tuple[str, ...] = ()
    argument: int = 0
    fleeting: bool = False


#: Every code that `llmagentos check` reports, for its help.
CODES = {
    "E001": "the file can't be read as Python",
    "E002": "an agent that deploy would refuse",
    "E101": "the clock",
    "E102": "chance",
    "E103": "a new id",
    "E104": "the network: HTTP, models, databases, mail",
    "E105": "files",
    "E106": "another program",
    "E107": "the environment: variables, host, process",
    "E108": "threads and processes",
    "E109": "sleeping",
    "E110": "the terminal",
    "E201": "cancellation or suspension is swallowed",
    "E202": "an effect while the handler is torn down",
    "E203": "steps of one name in parallel tasks",
    "E204": "the order of a set decides the order of steps",
    "E205": "state of the process is changed",
    "E206": "who finishes first decides the order of steps",
    "E207": "a step is given a coroutine in place of a function",
    "E208": "something of the context is called and not awaited",
}

_VERBS = ("get", "post", "put", "patch", "delete", "head", "options", "request")
_IN_A_STEP = '{await}{ctx}.step("{name}", fn, ...)'
_CALL_ADVICE = "do it in a function `fn` that returns what you need of it, and call `" + _IN_A_STEP + "`"


def _of(owners: Iterable[str], *names: str) -> tuple[str, ...]:
    return tuple(f"{owner}.{name}" for owner in owners for name in names)


def _advice(name: str) -> str:
    return _CALL_ADVICE.replace("{name}", name)


EFFECTS: tuple[Effect, ...] = (
    Effect(
        "E101",
        "reads the clock",
        "write `{ctx}.now()`: the same time whenever the handler runs again",
        (
            *_of(("time",), "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"),
            *_of(("time",), "process_time", "process_time_ns", "thread_time", "clock_gettime", "clock_gettime_ns"),
            *_of(("datetime.datetime",), "now", "utcnow", "today"),
            "datetime.date.today",
            *_of(("pandas.Timestamp", "pendulum", "arrow"), "now", "utcnow", "today", "tomorrow", "yesterday"),
            *_of(("django.utils.timezone",), "now", "localtime", "localdate"),
            "asyncio.get_running_loop().time",
            "asyncio.get_event_loop().time",
            *_of(("whenever.Instant", "whenever.ZonedDateTime"), "now"),
        ),
        fleeting=True,
    ),
    Effect(
        "E101",
        "reads the clock",
        "give it a time of your own: `{ctx}.now()`",
        _of(("time",), "localtime", "gmtime", "ctime"),
        argument=1,
        fleeting=True,
    ),
    Effect(
        "E101",
        "reads the clock",
        "give it a time of your own: `{ctx}.now()`",
        _of(("time",), "strftime"),
        argument=2,
        fleeting=True,
    ),
    Effect(
        "E101",
        "sets a limit by the clock, which a rerun that finds its steps recorded does not meet",
        "give the limit to what waits: `{await}{ctx}.step(name, fn, timeout=...)`, `{await}{ctx}.ask(..., timeout=...)`"
        " or `@agent(timeout=...)`",
        (
            "asyncio.wait_for",
            "asyncio.timeout",
            "asyncio.timeout_at",
            "async_timeout.timeout",
            "anyio.fail_after",
            "anyio.move_on_after",
        ),
    ),
    Effect(
        "E102",
        "draws by chance",
        "write `{ctx}.random()`, which repeats when the handler runs again, or draw within `"
        + _IN_A_STEP.replace("{name}", "draw")
        + "`",
        (
            *_of(("random",), "random", "randint", "randrange", "choice", "choices", "sample", "shuffle", "uniform"),
            *_of(("random",), "gauss", "normalvariate", "lognormvariate", "expovariate", "betavariate", "triangular"),
            *_of(("random",), "gammavariate", "paretovariate", "vonmisesvariate", "weibullvariate", "binomialvariate"),
            *_of(("random",), "getrandbits", "randbytes", "seed", "SystemRandom"),
            *_of(("secrets",), "token_bytes", "token_hex", "token_urlsafe", "choice", "randbelow", "randbits"),
            "os.urandom",
            "os.getrandom",
            *_of(("numpy.random",), "rand", "randn", "randint", "random", "choice", "shuffle", "permutation", "normal"),
            *_of(("numpy.random",), "uniform", "seed", "random_sample", "integers"),
        ),
        fleeting=True,
    ),
    Effect(
        "E102",
        "draws by chance",
        "give it a seed that repeats: `{ctx}.random()`",
        ("random.Random", "numpy.random.default_rng", "numpy.random.RandomState"),
        argument=1,
        fleeting=True,
    ),
    Effect(
        "E103",
        "makes an id that is another one when the handler runs again",
        "write `{ctx}.uuid()`",
        (
            *_of(("uuid",), "uuid1", "uuid4", "uuid6", "uuid7", "uuid8"),
            *_of(("uuid6",), "uuid6", "uuid7", "uuid8"),
            *("shortuuid.uuid", "shortuuid.random", "ulid.new", "ulid.ULID", "nanoid.generate", "cuid2.Cuid"),
            *_of(("uuid_utils",), "uuid1", "uuid4", "uuid6", "uuid7"),
        ),
        fleeting=True,
    ),
    Effect(
        "E104",
        "calls the network",
        _advice("call"),
        (
            *_of(("requests", "requests.Session()", "requests.sessions.Session()", "requests.session()"), *_VERBS),
            *_of(("httpx", "httpx.Client()", "httpx.AsyncClient()"), *_VERBS, "stream"),
            *_of(("httpx.Client()", "httpx.AsyncClient()", "requests.Session()"), "send"),
            *_of(("aiohttp.ClientSession()",), *_VERBS, "ws_connect"),
            *("aiohttp.request", "urllib.request.urlopen", "urllib.request.urlretrieve", "urllib3.request"),
            "urllib3.PoolManager().*",
            *_of(
                ("http.client.HTTPConnection()", "http.client.HTTPSConnection()"), "request", "getresponse", "connect"
            ),
            *("socket.create_connection", "socket.socket().*", "socket.getaddrinfo", "socket.gethostbyname"),
            *("asyncio.open_connection", "asyncio.start_server", "asyncio.open_unix_connection"),
            *("websockets.connect", "websockets.sync.client.connect", "websocket.create_connection"),
            *("smtplib.SMTP", "smtplib.SMTP_SSL", "aiosmtplib.send", "imaplib.IMAP4", "imaplib.IMAP4_SSL"),
            *("poplib.POP3", "ftplib.FTP", "ftplib.FTP_TLS", "paramiko.SSHClient().*", "asyncssh.connect"),
            *("boto3.client().*", "boto3.resource().*", "boto3.Session().client().*"),
            *("slack_sdk.WebClient().*", "slack_sdk.web.async_client.AsyncWebClient().*"),
        ),
    ),
    Effect(
        "E104",
        "calls a model, which costs again when the handler runs again",
        _advice("model"),
        (
            *_of(("openai.OpenAI()", "openai.AsyncOpenAI()", "openai.AzureOpenAI()", "openai.AsyncAzureOpenAI()"), "*"),
            *_of(("openai",), "chat.*", "embeddings.*", "images.*", "audio.*", "completions.*", "responses.*"),
            *_of(("anthropic.Anthropic()", "anthropic.AsyncAnthropic()", "anthropic.AnthropicBedrock()"), "*"),
            *_of(("litellm",), "completion", "acompletion", "embedding", "aembedding", "responses", "aresponses"),
            *_of(("ollama", "ollama.Client()", "ollama.AsyncClient()"), "chat", "generate", "embed", "embeddings"),
            *_of(("mistralai.Mistral()", "cohere.Client()", "cohere.AsyncClient()", "groq.Groq()"), "*"),
            *_of(("google.genai.Client()", "google.generativeai.GenerativeModel()", "groq.AsyncGroq()"), "*"),
        ),
    ),
    Effect(
        "E104",
        "calls a database",
        _advice("query"),
        (
            *("sqlite3.connect", "sqlite3.connect().*", "aiosqlite.connect", "aiosqlite.connect().*"),
            *("psycopg.connect", "psycopg.connect().*", "psycopg.AsyncConnection.connect", "psycopg2.connect"),
            *("psycopg2.connect().*", "psycopg_pool.ConnectionPool().*", "psycopg_pool.AsyncConnectionPool().*"),
            *("asyncpg.connect", "asyncpg.connect().*", "asyncpg.create_pool", "asyncpg.create_pool().*"),
            *("pymysql.connect", "pymysql.connect().*", "mysql.connector.connect", "mysql.connector.connect().*"),
            *("duckdb.connect", "duckdb.connect().*", "duckdb.sql", "duckdb.query", "duckdb.execute"),
            *_of(("redis.Redis()", "redis.StrictRedis()", "redis.from_url()", "redis.Redis.from_url()"), "*"),
            *_of(("redis.asyncio.Redis()", "redis.asyncio.from_url()", "redis.asyncio.Redis.from_url()"), "*"),
            *("pymongo.MongoClient().*", "pymongo.AsyncMongoClient().*", "motor.motor_asyncio.AsyncIOMotorClient().*"),
            *_of(("sqlalchemy.create_engine()", "sqlalchemy.ext.asyncio.create_async_engine()"), "connect", "begin"),
            *_of(("sqlalchemy.orm.Session()", "sqlalchemy.ext.asyncio.AsyncSession()"), "*"),
            *("elasticsearch.Elasticsearch().*", "elasticsearch.AsyncElasticsearch().*"),
        ),
    ),
    Effect(
        "E104",
        "sends to Kafka by itself",
        "write `{await}{ctx}.publish(topic, content)`, which is sent once the handler has returned",
        (
            *("confluent_kafka.Producer().produce", "confluent_kafka.SerializingProducer().produce"),
            *("kafka.KafkaProducer().send", "aiokafka.AIOKafkaProducer().send"),
            "aiokafka.AIOKafkaProducer().send_and_wait",
            *_of(("faust.App().topic()",), "send", "send_soon"),
        ),
    ),
    Effect(
        "E105",
        "reads or writes files",
        _advice("file"),
        (
            *("builtins.open", "io.open", "io.open_code", "codecs.open", "os.open", "os.fdopen", "aiofiles.open"),
            *("anyio.open_file", "gzip.open", "bz2.open", "lzma.open", "tarfile.open", "zipfile.ZipFile"),
            *("fsspec.open", "shelve.open", "dbm.open", "mmap.mmap", "fileinput.input", "linecache.getline"),
            *_of(("os",), "listdir", "scandir", "walk", "mkdir", "makedirs", "remove", "unlink", "rmdir", "removedirs"),
            *_of(("os",), "rename", "renames", "replace", "link", "symlink", "readlink", "stat", "lstat", "chmod"),
            *_of(("os",), "chown", "truncate", "utime", "access", "statvfs", "write", "read", "fsync"),
            *_of(("os.path",), "exists", "isfile", "isdir", "islink", "getsize", "getmtime", "getctime", "getatime"),
            *_of(("shutil",), "copy", "copy2", "copyfile", "copytree", "move", "rmtree", "disk_usage", "which"),
            *_of(("shutil",), "make_archive", "unpack_archive"),
            *_of(("glob",), "glob", "iglob"),
            *_of(("tempfile",), "TemporaryFile", "NamedTemporaryFile", "TemporaryDirectory", "mkstemp", "mkdtemp"),
            *_of(("tempfile",), "SpooledTemporaryFile"),
            *_of(("pathlib.Path()",), "open", "read_text", "read_bytes", "write_text", "write_bytes", "exists"),
            *_of(("pathlib.Path()",), "is_file", "is_dir", "is_symlink", "stat", "lstat", "iterdir", "glob", "rglob"),
            *_of(("pathlib.Path()",), "mkdir", "rmdir", "touch", "unlink", "rename", "replace", "chmod", "symlink_to"),
            *_of(("pathlib.Path()",), "hardlink_to", "readlink", "samefile", "walk", "owner", "resolve"),
            *_of(("pandas", "polars"), "read_csv", "read_parquet", "read_json", "read_excel", "read_sql", "read_avro"),
            *_of(("numpy",), "load", "save", "savez", "loadtxt", "savetxt", "genfromtxt", "fromfile"),
            *_of(("torch",), "load", "save"),
            "PIL.Image.open",
        ),
    ),
    Effect(
        "E106",
        "runs another program",
        _advice("run"),
        (
            *_of(("subprocess",), "run", "call", "check_call", "check_output", "Popen", "getoutput", "getstatusoutput"),
            *_of(("asyncio",), "create_subprocess_exec", "create_subprocess_shell"),
            *_of(("os",), "system", "popen", "fork", "forkpty", "kill", "killpg", "posix_spawn", "startfile"),
            *("os.exec*", "os.spawn*", "anyio.run_process", "anyio.open_process", "pexpect.spawn", "webbrowser.open"),
        ),
    ),
    Effect(
        "E107",
        "reads or changes the environment, which differs from worker to worker",
        'read it once, where the module is imported, or within `{await}{ctx}.step("settings", fn)`',
        (
            *("os.getenv", "os.putenv", "os.unsetenv", "os.getcwd", "os.chdir", "os.getlogin", "os.cpu_count"),
            *("os.getpid", "os.getppid", "os.uname", "os.getloadavg", "os.path.expandvars", "os.path.expanduser"),
            *("socket.gethostname", "socket.getfqdn", "platform.*", "getpass.getuser", "uuid.getnode"),
            *("pathlib.Path.cwd", "pathlib.Path.home", "locale.getlocale", "threading.get_ident", "psutil.*"),
            *("dotenv.load_dotenv", "dotenv.dotenv_values"),
        ),
        reads=("os.environ", "os.environb"),
        fleeting=True,
    ),
    Effect(
        "E108",
        "goes on in a thread or process that no journal knows of",
        _advice("compute"),
        (
            *("threading.Thread", "threading.Timer", "_thread.start_new_thread", "asyncio.to_thread"),
            *("asyncio.get_running_loop().run_in_executor", "asyncio.get_event_loop().run_in_executor"),
            *("concurrent.futures.ThreadPoolExecutor", "concurrent.futures.ProcessPoolExecutor"),
            *_of(("concurrent.futures.ThreadPoolExecutor()", "concurrent.futures.ProcessPoolExecutor()"), "submit"),
            *_of(("concurrent.futures.ThreadPoolExecutor()", "concurrent.futures.ProcessPoolExecutor()"), "map"),
            *("multiprocessing.Process", "multiprocessing.Pool", "multiprocessing.pool.ThreadPool"),
            *("anyio.to_thread.run_sync", "anyio.to_process.run_sync", "asyncio.run_coroutine_threadsafe"),
            *("joblib.Parallel", "asyncio.run"),
        ),
    ),
    Effect(
        "E109",
        "sleeps where every other conversation of the worker has to wait",
        "write `{await}{ctx}.sleep(seconds)`: the slot is free meanwhile, and it goes on after a restart",
        ("time.sleep", "gevent.sleep"),
    ),
    Effect(
        "E109",
        "sleeps, holds its slot, and begins anew when the handler runs again",
        "write `{await}{ctx}.sleep(seconds)`: the slot is free meanwhile, and it goes on after a restart",
        ("asyncio.sleep", "anyio.sleep", "trio.sleep"),
    ),
    Effect(
        "E110",
        "waits for the terminal, which a worker has not",
        "ask a person by `{await}{ctx}.approve(...)`",
        (
            "builtins.input",
            "getpass.getpass",
            "builtins.breakpoint",
            "click.prompt",
            "click.confirm",
            "typer.prompt",
            "typer.confirm",
            "sys.stdin.*",
        ),
    ),
    Effect(
        "E206",
        "goes on in the order in which work happens to finish, which is another one when it runs again",
        "use `asyncio.gather`, which keeps the order that you write",
        ("asyncio.as_completed", "asyncio.wait", "concurrent.futures.as_completed"),
    ),
)

#: Methods that do nothing outside, of objects whose every other method does.
HARMLESS = frozenset({"close", "aclose", "with_options", "copy", "settimeout", "setsockopt", "setblocking"})

#: What calls and attributes give, where that is of a kind that the table knows: the longest name that ends so.
RESULTS = {
    "pathlib.PosixPath()": "pathlib.Path()",
    "pathlib.Path.cwd()": "pathlib.Path()",
    "pathlib.Path.home()": "pathlib.Path()",
    **dict.fromkeys(
        (f"pathlib.Path().{name}" for name in ("parent", "absolute()", "resolve()", "expanduser()", "joinpath()")),
        "pathlib.Path()",
    ),
    **dict.fromkeys(
        (f"pathlib.Path().{name}()" for name in ("with_name", "with_suffix", "with_stem")), "pathlib.Path()"
    ),
    "openai.OpenAI().with_options()": "openai.OpenAI()",
    "openai.AsyncOpenAI().with_options()": "openai.AsyncOpenAI()",
    "anthropic.Anthropic().with_options()": "anthropic.Anthropic()",
    "anthropic.AsyncAnthropic().with_options()": "anthropic.AsyncAnthropic()",
    "builtins.frozenset()": "builtins.set()",
    "typing.Set()": "builtins.set()",
    "typing.FrozenSet()": "builtins.set()",
    "typing.AbstractSet()": "builtins.set()",
    "collections.abc.Set()": "builtins.set()",
    "collections.abc.MutableSet()": "builtins.set()",
    **dict.fromkeys(
        (
            f"builtins.set().{name}()"
            for name in ("union", "intersection", "difference", "symmetric_difference", "copy")
        ),
        "builtins.set()",
    ),
}


@cache
def _index() -> tuple[dict[str, Effect], dict[str, Effect], dict[str, list[tuple[re.Pattern[str], Effect]]]]:
    """Calls and reads by name, and by their first word the calls that have a star."""
    calls: dict[str, Effect] = {}
    reads: dict[str, Effect] = {}
    stars: dict[str, list[tuple[re.Pattern[str], Effect]]] = {}
    for effect in EFFECTS:
        reads.update(dict.fromkeys(effect.reads, effect))
        for name in effect.calls:
            if "*" in name:
                pattern = re.compile(re.escape(name).replace(r"\*", r"[^()]*"))
                stars.setdefault(name.split(".", 1)[0], []).append((pattern, effect))
            else:
                calls[name] = effect
    return calls, reads, stars


def find(name: str, *, read: bool = False) -> Effect | None:
    """The effect that a call of *name* has, or a read of it; None where it has none that is known."""
    calls, reads, stars = _index()
    if read:
        return reads.get(name)
    if name in calls:
        return calls[name]
    if name.rsplit(".", 1)[-1] in HARMLESS:
        return None
    return next((effect for star, effect in stars.get(name.split(".", 1)[0], ()) if star.fullmatch(name)), None)
