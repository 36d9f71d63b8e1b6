"""The Celery side: task names, thin task bodies, the chains and the dispatcher."""
