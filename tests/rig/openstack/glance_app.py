"""Glance for gunicorn, whose own options are in sys.argv and must not reach Glance."""
import sys

sys.argv = sys.argv[:1]
from glance.common import wsgi_app  # noqa: E402

application = wsgi_app.init_app()
