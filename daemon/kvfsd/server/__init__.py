"""The queue pair served over a unix socket: who may attach, attachments that outlive connections, connections."""
