/* includes: zygote.c */
/* test_zygote.c - births, deaths and the end, with workers written in C. */
#include "harness.h"

#include "../src/zygote.c"

struct talk {
    int control;
    pid_t zygote;
    struct fm_message said; /* last */
    int fds[FM_MESSAGE_FDS], nfds;
    const int *hints; /* a pipe, or NULL: the zygote is given none */
};

/* A worker: the first byte of its task pipe is its exit code. */
static void work(const struct fm_birth *born)
{
    uint8_t code;
    if (fm__sys_read(born->task_fd, &code, 1) != 1)
        _exit(0);
    _exit(code);
}

static void start(struct talk *talk, struct fm_zygote_options options)
{
    int pair[2];
    CHECK_EQ(fm_sys_socketpair(pair), 0);
    options.control_fd = pair[1];
    options.parent_fd = -1;
    options.spawn_fd = options.share_fd = -1;
    options.hint_fd = talk->hints ? talk->hints[0] : -1;
    if (options.workers == 0)
        options.workers = 1;
    talk->zygote = fork();
    CHECK(talk->zygote >= 0);
    if (talk->zygote == 0) {
        struct fm_birth born;
        close(pair[0]);
        fm_zygote *zygote;
        int rc = fm_zygote_open(&zygote, &options);
        CHECK_EQ(rc, 0);
        /* A hint's answer: the byte goes back over the other pipe. */
        for (uint8_t byte; (rc = fm_zygote_run(zygote, &born)) ==
                           FM_ZYGOTE_HINT;)
            CHECK(read(talk->hints[0], &byte, 1) == 1 &&
                  write(talk->hints[3], &byte, 1) == 1);
        if (rc == 1) {
            CHECK(!talk->hints || !is_open(talk->hints[0]));
            work(&born);
        }
        _exit(rc == 0 ? 0 : 1);
    }
    close(pair[1]);
    talk->control = pair[0];
}

static void hear(struct talk *talk, int kind)
{
    CHECK_EQ(fm_message_recv(talk->control, &talk->said, talk->fds,
                             &talk->nfds),
             1);
    CHECK_EQ(talk->said.kind, kind);
}

static void drop_fds(struct talk *talk)
{
    while (talk->nfds > 0)
        close(talk->fds[--talk->nfds]);
}

static void say(struct talk *talk, struct fm_message message)
{
    message.magic = FM_MAGIC;
    CHECK_EQ(fm_message_send(talk->control, &message, NULL, 0), 0);
}

static void finish(struct talk *talk)
{
    close(talk->control);
    CHECK_CHILD(talk->zygote);
}

static const struct fm_zygote_options plain = {
    .most_deaths = 3, .deaths_ns = FM_FOREVER, .refused_status = 66,
    .first = {-1, -1, -1, -1, -1}};

TEST(a_dead_worker_is_reported_and_replaced)
{
    struct talk talk = {0};
    start(&talk, plain);
    hear(&talk, FM_REPORT_BORN);
    CHECK_EQ(talk.nfds, FM_MESSAGE_FDS);
    CHECK_EQ(talk.said.generation, 1);
    int pid = talk.said.pid;
    CHECK_EQ(write(talk.fds[1], "\7", 1), 1);
    drop_fds(&talk);
    hear(&talk, FM_REPORT_DIED);
    CHECK_EQ(talk.said.pid, pid);
    CHECK(WIFEXITED(talk.said.status));
    CHECK_EQ(WEXITSTATUS(talk.said.status), 7);
    CHECK(talk.said.rss_kb > 0);
    hear(&talk, FM_REPORT_BORN);
    CHECK_EQ(talk.said.generation, 2);
    drop_fds(&talk); /* the end of its task pipe: it leaves by itself */
    say(&talk, (struct fm_message){.kind = FM_REPORT_STOP,
                                   .status = FM_LADDER_GENTLE});
    finish(&talk);
}

TEST(more_deaths_than_allowed_end_the_replacements)
{
    struct talk talk = {0};
    struct fm_zygote_options options = plain;
    options.most_deaths = 2;
    start(&talk, options);
    for (int i = 0; i < 3; i++) {
        hear(&talk, FM_REPORT_BORN);
        CHECK_EQ(write(talk.fds[1], "\1", 1), 1);
        drop_fds(&talk);
        hear(&talk, FM_REPORT_DIED);
    }
    hear(&talk, FM_REPORT_BROKEN);
    say(&talk, (struct fm_message){.kind = FM_REPORT_STOP,
                                   .status = FM_LADDER_KILL});
    CHECK_EQ(fm_message_recv(talk.control, &talk.said, talk.fds, &talk.nfds),
             FM_EEOF);
    finish(&talk);
}

TEST(deaths_that_are_excused_do_not_count_while_their_frame_runs)
{
    struct talk talk = {0};
    struct fm_zygote_options options = plain;
    options.most_deaths = 1;
    start(&talk, options);
    for (int i = 0; i < 7; i++) {
        fm_page *page;
        hear(&talk, FM_REPORT_BORN);
        CHECK_EQ(fm_page_map(talk.fds[3], &page), 0);
        atomic_store(&page->excused, 1);
        atomic_store(&page->frame_start, i < 5 ? fm_now() : 0);
        fm_page_unmap(page);
        CHECK_EQ(write(talk.fds[1], "\1", 1), 1);
        drop_fds(&talk);
        hear(&talk, FM_REPORT_DIED);
    }
    hear(&talk, FM_REPORT_BROKEN);
    finish(&talk);
}

TEST(a_kill_is_obeyed_and_counts_for_nothing)
{
    struct talk talk = {0};
    struct fm_zygote_options options = plain;
    options.most_deaths = 0;
    start(&talk, options);
    for (uint32_t i = 1; i < 4; i++) {
        hear(&talk, FM_REPORT_BORN);
        struct fm_message order = {.kind = FM_REPORT_KILL,
                                   .generation = i + 1,
                                   .status = SIGKILL};
        say(&talk, order); /* another generation: nobody is hurt */
        order.slot = 77;
        say(&talk, order);
        order.slot = 0;
        order.generation = i;
        say(&talk, order);
        /* Not sooner: without its task pipe it ends by itself. */
        CHECK_EQ(fm_sys_wait_readable(&talk.fds[2], 1, FM_FOREVER), 1);
        drop_fds(&talk);
        hear(&talk, FM_REPORT_DIED);
        CHECK(talk.said.flags & FM_DIED_ASKED);
        CHECK_EQ(talk.said.generation, i);
    }
    hear(&talk, FM_REPORT_BORN);
    drop_fds(&talk);
    finish(&talk);
}

TEST(a_kill_that_finds_it_dead_is_not_its_cause)
{
    struct talk talk = {0};
    struct fm_message order = {
        .kind = FM_REPORT_KILL, .generation = 1, .status = SIGKILL};
    siginfo_t info;
    start(&talk, plain);
    hear(&talk, FM_REPORT_BORN);
    int ended = fm_sys_pidfd(talk.said.pid);
    CHECK(ended >= 0);
    CHECK_EQ(kill(talk.zygote, SIGSTOP), 0);
    CHECK_EQ(waitid(P_PID, (id_t)talk.zygote, &info, WSTOPPED | WNOWAIT), 0);
    CHECK_EQ(write(talk.fds[1], "\7", 1), 1); /* it exits, nobody looks */
    CHECK_EQ(fm_sys_wait_readable(&ended, 1, FM_FOREVER), 1);
    close(ended);
    say(&talk, order);
    CHECK_EQ(kill(talk.zygote, SIGCONT), 0);
    drop_fds(&talk);
    hear(&talk, FM_REPORT_DIED);
    CHECK(!(talk.said.flags & FM_DIED_ASKED));
    CHECK_EQ(WEXITSTATUS(talk.said.status), 7);
    hear(&talk, FM_REPORT_BORN);
    drop_fds(&talk);
    say(&talk, (struct fm_message){.kind = FM_REPORT_STOP,
                                   .status = FM_LADDER_GENTLE});
    finish(&talk);
}

TEST(it_ends_with_its_workers_when_the_pools_process_is_gone)
{
    struct talk talk = {0};
    struct fm_zygote_options options = plain;
    options.workers = 3;
    start(&talk, options);
    int results[3], n = 0;
    while (n < 3) {
        hear(&talk, FM_REPORT_BORN);
        results[n++] = dup(talk.fds[2]);
        drop_fds(&talk);
    }
    finish(&talk);
    for (n = 0; n < 3; n++) { /* the only writers were workers */
        char byte;
        CHECK_EQ(read(results[n], &byte, 1), 0);
        close(results[n]);
    }
}

static void make_first(int first[5])
{
    CHECK_EQ(fm_sys_pipe(first), 0);
    CHECK_EQ(fm_sys_pipe(first + 2), 0);
    first[4] = fm_page_create();
    CHECK(first[4] > 2);
}

TEST(what_is_written_before_the_first_worker_is_there_reaches_it)
{
    struct talk talk = {0};
    struct fm_zygote_options options = plain;
    int *first = options.first;
    make_first(first);
    CHECK_EQ(write(first[1], "\5", 1), 1);
    start(&talk, options);
    for (int i = 0; i < 5; i++)
        if (i != 2)
            close(first[i]);
    hear(&talk, FM_REPORT_BORN);
    CHECK_EQ(talk.nfds, 0);
    hear(&talk, FM_REPORT_DIED);
    CHECK_EQ(WEXITSTATUS(talk.said.status), 5);
    char byte;
    CHECK_EQ(read(first[2], &byte, 1), 0); /* no copy of its writing end */
    close(first[2]);
    hear(&talk, FM_REPORT_BORN);
    CHECK_EQ(talk.nfds, FM_MESSAGE_FDS); /* its successor's are its own */
    drop_fds(&talk);
    finish(&talk);
}

TEST(the_others_are_born_a_moment_after_a_first_worker_with_a_channel)
{
    struct talk talk = {0};
    struct fm_zygote_options options = plain;
    int64_t before = fm_now();
    options.workers = 2;
    make_first(options.first);
    start(&talk, options);
    hear(&talk, FM_REPORT_BORN);
    CHECK_EQ(talk.said.slot, 0);
    hear(&talk, FM_REPORT_BORN);
    CHECK_EQ(talk.said.slot, 1);
    CHECK(fm_now() - before >= 1000000);
    drop_fds(&talk);
    for (int i = 0; i < 5; i++)
        close(options.first[i]); /* until now it has had something to read */
    finish(&talk);
}

#define MANY 100 /* more than one read of /proc/self/fd tells */

TEST(others_pipes_are_silenced_and_the_environment_is_added_to)
{
    pid_t pid = fork();
    if (pid > 0) {
        CHECK_CHILD(pid);
        return;
    }
    char variable[] = "FORKMILL_TEST=yes", *const variables[] = {variable, 0};
    int theirs[2], kept[2], more[MANY][2];
    char byte;
    CHECK_EQ(fm_sys_pipe(theirs), 0);
    for (int i = 0; i < MANY; i++)
        CHECK_EQ(fm_sys_pipe(more[i]), 0);
    CHECK_EQ(fm_sys_pipe(kept), 0);
    close(1);
    CHECK_EQ(fm_zygote_detach(kept, 2, variables), 0);
    CHECK_EQ(read(theirs[0], &byte, 1), 0); /* /dev/null; the pipe would block */
    for (int i = 0; i < MANY; i++)
        CHECK_EQ(read(more[i][0], &byte, 1), 0);
    CHECK_EQ(read(0, &byte, 1), 0);
    CHECK_EQ(write(1, "x", 1), 1);
    CHECK_EQ(write(kept[1], "x", 1), 1);
    CHECK_EQ(read(kept[0], &byte, 1), 1);
    CHECK_EQ(strcmp(getenv("FORKMILL_TEST"), "yes"), 0);
    _exit(0);
}

TEST(a_hint_comes_back_to_the_caller_and_nothing_is_lost)
{
    int pipes[4];
    uint8_t byte;
    struct talk talk = {.hints = pipes};
    CHECK(fm_sys_pipe(pipes) == 0 && fm_sys_pipe(pipes + 2) == 0);
    start(&talk, plain);
    hear(&talk, FM_REPORT_BORN);
    for (int i = 1; i <= 3; i++) {
        CHECK_EQ(write(pipes[1], "ab", 2), 2);
        CHECK_EQ(write(talk.fds[1], "\1", 1), 1); /* and a death meanwhile */
        drop_fds(&talk);
        CHECK(read(pipes[2], &byte, 1) == 1 && byte == 'a');
        CHECK(read(pipes[2], &byte, 1) == 1 && byte == 'b');
        hear(&talk, FM_REPORT_DIED);
        hear(&talk, FM_REPORT_BORN);
        CHECK_EQ(talk.said.generation, i + 1);
    }
    CHECK_EQ(write(pipes[1], "late", 4), 4); /* the end goes first */
    drop_fds(&talk);
    say(&talk, (struct fm_message){.kind = FM_REPORT_STOP,
                                   .status = FM_LADDER_KILL});
    finish(&talk);
    for (int i = 0; i < 4; i++)
        close(pipes[i]);
}
