"""Keystone for gunicorn, whose own options are in sys.argv and must not reach Keystone."""
import sys

sys.argv = sys.argv[:1]
from keystone.server import wsgi  # noqa: E402

application = wsgi.initialize_public_application()
