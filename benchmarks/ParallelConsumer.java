import io.confluent.parallelconsumer.ParallelConsumerOptions;
import io.confluent.parallelconsumer.ParallelConsumerOptions.ProcessingOrder;
import io.confluent.parallelconsumer.ParallelStreamProcessor;
import io.confluent.parallelconsumer.reactor.ReactorProcessor;
import java.time.Duration;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;
import reactor.core.publisher.Mono;

/** The peer of benchmarks/lanes.py: core|reactor BROKERS TOPIC GROUP COUNT CONCURRENCY HANDLER_MS. */
class ParallelConsumer {
    private static final ConcurrentHashMap<String, Long> LAST = new ConcurrentHashMap<>();
    private static final AtomicLong HANDLED = new AtomicLong();
    private static final AtomicLong DISORDER = new AtomicLong();
    private static final AtomicLong STARTED = new AtomicLong();

    private static void begin(ConsumerRecord<String, byte[]> record) {
        STARTED.compareAndSet(0, System.nanoTime());
        Long before = LAST.put(record.key(), record.offset());
        if (before != null && before >= record.offset()) {
            DISORDER.incrementAndGet();
        }
    }

    public static void main(String[] args) throws Exception {
        long count = Long.parseLong(args[4]);
        long handlerMs = Long.parseLong(args[6]);
        Properties settings = new Properties();
        settings.put("bootstrap.servers", args[1]);
        settings.put("group.id", args[3]);
        settings.put("auto.offset.reset", "earliest");
        settings.put("enable.auto.commit", "false");
        settings.put("max.poll.records", "2000");
        settings.put("key.deserializer", StringDeserializer.class.getName());
        settings.put("value.deserializer", ByteArrayDeserializer.class.getName());
        CountDownLatch done = new CountDownLatch(1);
        Runnable end = () -> {
            if (HANDLED.incrementAndGet() == count) {
                done.countDown();
            }
        };
        ParallelConsumerOptions<String, byte[]> options = ParallelConsumerOptions.<String, byte[]>builder()
            .consumer(new KafkaConsumer<>(settings))
            .ordering(ProcessingOrder.KEY)
            .maxConcurrency(Integer.parseInt(args[5]))
            .build();
        if (args[0].equals("core")) {
            ParallelStreamProcessor<String, byte[]> core = ParallelStreamProcessor.createEosStreamProcessor(options);
            core.subscribe(List.of(args[2]));
            core.poll(context -> {
                begin(context.getSingleConsumerRecord());
                try {
                    Thread.sleep(handlerMs);
                } catch (InterruptedException error) {
                    throw new IllegalStateException(error);
                }
                end.run();
            });
        } else {
            ReactorProcessor<String, byte[]> reactor = new ReactorProcessor<>(options);
            reactor.subscribe(List.of(args[2]));
            reactor.react(context -> {
                begin(context.getSingleConsumerRecord());
                return Mono.delay(Duration.ofMillis(handlerMs)).doOnNext(zero -> end.run());
            });
        }
        done.await();
        double seconds = (System.nanoTime() - STARTED.get()) / 1e9;
        System.out.printf(
            "{\"events\": %d, \"seconds\": %.4f, \"disorder\": %d}%n", count, seconds, DISORDER.get());
        System.out.flush();
        Runtime.getRuntime().halt(0);
    }
}
