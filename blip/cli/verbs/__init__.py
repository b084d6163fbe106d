"""The verbs, a module for those that belong together. Importing one adds its verbs to the app.

Bodies import what they need, so that ``--help`` stays instant.
"""
