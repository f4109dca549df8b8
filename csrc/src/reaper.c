/*
 * reaper.c - the pool's side of its zygote.
 *
 * The zygote forks, reaps and signals workers; this side reads its reports,
 * asks it to kill, and collects the zygote's own exit status.
 *
 * Guarantees: never waits; collects exactly one pid, the zygote's, and never
 * any child (P1 of the rules: a library must not steal another's statuses);
 * touches no signal handler.  A message is sent once, and whole: the end of
 * one that did not fit goes before the next.  ECHILD (somebody ignores SIGCHLD)
 * means "gone, status unknown" (-1).
 * Threads: the pool's mutex is held around every call.
 */
#include "internal.h"

void fm__reaper_init(struct fm__reaper *reaper, int control_fd, pid_t zygote)
{
    *reaper = (struct fm__reaper){
        .control_fd = control_fd, .pid_fd = -1, .reaped = true};
    fm__guard_fd(control_fd);
    if (zygote > 0)
        fm__reaper_adopt(reaper, zygote);
}

void fm__reaper_adopt(struct fm__reaper *reaper, pid_t zygote)
{
    reaper->zygote = zygote;
    reaper->reaped = false;
    reaper->pid_fd = fm_sys_pidfd(zygote);
    if (reaper->pid_fd >= 0)
        fm__guard_fd(reaper->pid_fd);
}

void fm__reaper_unwatch(struct fm__reaper *reaper)
{
    if (reaper->pid_fd >= 0) {
        fm__unguard_fd(reaper->pid_fd);
        fm__sys_close(reaper->pid_fd);
    }
    reaper->pid_fd = -1;
}

int fm__reaper_next(struct fm__reaper *reaper, struct fm_message *message,
                    int fds[FM_MESSAGE_FDS], int *nfds)
{
    if (reaper->ended)
        return FM_EEOF;
    int rc = fm__message_take(reaper->control_fd, &reaper->in, message, fds,
                              nfds);
    if (rc < 0)
        reaper->ended = true;
    return rc;
}

int fm__reaper_ask(struct fm__reaper *reaper, enum fm_report kind,
                   uint32_t slot, uint32_t generation, int status)
{
    struct fm_message message = {.magic = FM_MAGIC,
                                 .kind = (uint16_t)kind,
                                 .slot = slot,
                                 .generation = generation,
                                 .status = status};
    if (reaper->ended)
        return FM_EEOF;
    int rc = fm__reaper_flush(reaper);
    if (rc < 0)
        return rc;
    memcpy(reaper->out, &message, sizeof message);
    reaper->out_left = sizeof message;
    rc = fm__reaper_flush(reaper);
    if (reaper->out_left < sizeof message)
        return 0; /* it has begun: the rest goes when there is room */
    reaper->out_left = 0;
    return rc;
}

int fm__reaper_flush(struct fm__reaper *reaper)
{
    while (reaper->out_left) {
        const uint8_t *rest =
            reaper->out + sizeof reaper->out - reaper->out_left;
        ssize_t n = fm__sys_send_fds(reaper->control_fd, rest,
                                     reaper->out_left, NULL, 0);
        if (n < 0)
            return (int)n;
        reaper->out_left -= (size_t)n;
    }
    return 0;
}

bool fm__reaper_collect(struct fm__reaper *reaper)
{
    if (!reaper->reaped) {
        int rc = fm__sys_reap(reaper->zygote, &reaper->status);
        if (rc < 0)
            reaper->status = -1;
        reaper->reaped = rc != 0;
    }
    return reaper->reaped;
}

void fm__reaper_kill(struct fm__reaper *reaper)
{
    /* Not reaped: the pid is still its own, a zombie at the least. */
    if (!fm__reaper_collect(reaper))
        fm__sys_kill(reaper->zygote, SIGKILL);
}

void fm__reaper_fini(struct fm__reaper *reaper)
{
    if (reaper->control_fd >= 0) {
        fm__unguard_fd(reaper->control_fd);
        fm__sys_close(reaper->control_fd);
    }
    fm__reaper_unwatch(reaper);
    fm__partial_fini(&reaper->in);
    reaper->control_fd = -1;
    reaper->ended = true;
}
